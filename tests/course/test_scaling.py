"""The law that notebook 14 fits, on runs whose law is known, and the trainings behind it."""

import itertools
import math

import pytest
import torch

from benchmarks import record_scaling
from smol_scratch import accounting
from smol_scratch.course import law, races, scaling
from smol_scratch.course.law import Law

TRUE = Law(E=1.3, A=30.0, alpha=0.4, B=900.0, beta=0.55)
SIZES, LENGTHS = (8e3, 24e3, 5e4, 9e4, 2e5, 3.4e5), (1.1e5, 2.3e5, 4.6e5, 9.2e5)


def runs(noise=0.0, law=TRUE, seeds=3):
    """Return sizes, lengths, losses and the run of each."""
    generator = torch.Generator().manual_seed(0)
    rows = [(n, d, (n, seed)) for seed in range(seeds) for n in SIZES for d in LENGTHS]
    luck = (1 + noise * torch.randn(len(rows), generator=generator)).tolist()
    sizes, lengths, names = zip(*rows, strict=True)
    losses = [law.loss(n, d) * x for (n, d, _), x in zip(rows, luck, strict=True)]
    return sizes, lengths, losses, names


def test_a_known_law_is_found_again():
    sizes, lengths, losses, _ = runs()
    found = law.fit(sizes, lengths, losses)
    # The grid of exponents holds the true ones, so what is left is rounding.
    assert (found.alpha, found.beta) == pytest.approx((0.4, 0.55), abs=1e-9)
    rest = found.E, found.A, found.B
    assert rest == pytest.approx((1.3, 30, 900), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.355, 0.38, 0.42, 0.445])
@pytest.mark.parametrize("beta", [0.505, 0.57, 0.58])
def test_exponents_that_only_the_finer_grid_holds_are_found_exactly(alpha, beta):
    """The first grid goes by 0.05, the second by 0.005."""
    sizes, lengths, losses, _ = runs(law=Law(1.3, 30.0, alpha, 900.0, beta))
    found = law.fit(sizes, lengths, losses)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-9)
    rest = found.E, found.A, found.B
    assert rest == pytest.approx((1.3, 30, 900), rel=1e-6)


def test_an_e_that_is_held_lies_from_0_to_below_every_loss():
    sizes, lengths, losses, _ = runs()
    for held in (0, 0.5, min(losses) - 1e-6):
        found = law.fit(sizes, lengths, losses, E=held)
        assert held == found.E
    for wrong in (-0.01, min(losses), 99.0, math.nan):
        with pytest.raises(ValueError, match="must be at least 0 and below the lowest loss"):
            law.fit(sizes, lengths, losses, E=wrong)


def test_exponents_between_the_grids_points_are_met_to_its_step():
    sizes, lengths, losses, _ = runs(law=Law(1.3, 30.0, 0.4013, 900.0, 0.5488))
    found = law.fit(sizes, lengths, losses)
    assert abs(found.alpha - 0.4013) <= 0.0051
    assert abs(found.beta - 0.5488) <= 0.0051
    assert found.loss(8e5, 9.2e5) == pytest.approx(
        Law(1.3, 30.0, 0.4013, 900.0, 0.5488).loss(8e5, 9.2e5), rel=1e-3
    )


def test_no_other_law_fits_noisy_runs_better():
    sizes, lengths, losses, _ = runs(noise=0.003)
    found = law.fit(sizes, lengths, losses)

    def error(tried):
        pairs = zip(sizes, lengths, losses, strict=True)
        return sum((tried.loss(n, d) / loss - 1) ** 2 for n, d, loss in pairs)

    assert error(found) <= error(TRUE)
    for field in ("E", "A", "B"):  # the three that are solved for, not tried
        for factor in (0.999, 1.001):
            other = Law(**{**vars(found), field: getattr(found, field) * factor})
            assert error(found) < error(other)


def test_with_e_held_the_other_four_fit_as_well_as_they_can():
    sizes, lengths, losses, _ = runs()
    right = law.fit(sizes, lengths, losses, E=1.3)
    rest = right.alpha, right.beta, right.A, right.B
    assert right.E == 1.3
    assert rest == pytest.approx((0.4, 0.55, 30, 900), rel=1e-6)
    # Too small an E: both other terms fall more slowly, and the law lies farther off.
    low = law.fit(sizes, lengths, losses, E=1.0)
    assert low.E == 1.0
    assert (low.alpha, low.beta) < (0.4, 0.55)
    for field in ("A", "B"):
        for factor in (0.999, 1.001):
            other = Law(**{**vars(low), field: getattr(low, field) * factor})
            pairs = list(zip(sizes, lengths, losses, strict=True))
            off = [[one.loss(n, d) / loss - 1 for n, d, loss in pairs] for one in (low, other)]
            assert sum(x * x for x in off[0]) < sum(x * x for x in off[1])
    for impossible in (-0.1, 9.0, math.nan):
        with pytest.raises(ValueError, match=f"E={impossible}: must be at least 0"):
            law.fit(sizes, lengths, losses, E=impossible)


def test_the_intervals_hold_the_truth_about_as_often_as_they_say():
    """Over 12 sets of noisy runs, 90 % intervals of a new run beyond the grid: most hold it."""
    held = 0
    for number in range(12):
        generator = torch.Generator().manual_seed(number)
        sizes, lengths, losses, names = runs()
        luck = 1 + 0.003 * torch.randn(len(losses) + 1, generator=generator)
        losses = [loss * x for loss, x in zip(losses, luck.tolist(), strict=False)]
        where = {"size": 8e5, "length": 9.2e5}
        middle, low, high = law.predict(
            sizes, lengths, losses, names, **where, times=40, seed=number
        )
        assert low < middle < high
        held += low <= TRUE.loss(8e5, 9.2e5) * luck[-1] <= high
    # 11 of 12 would be expected. A true 90 % interval holds 7 or fewer once in 200 times;
    # one that holds the truth half of the time holds 6.
    assert held >= 8


def test_the_interval_knows_of_both_its_sources():
    sizes, lengths, losses, names = runs(noise=0.003)
    where = {"size": 8e5, "length": 9.2e5, "times": 40}
    _, low, high = law.predict(sizes, lengths, losses, names, **where)
    laws = law.bootstrap(sizes, lengths, losses, names, times=40)
    inner = law.interval([each.loss(8e5, 9.2e5) for each in laws])
    assert high - low > 1.5 * (inner[1] - inner[0])
    _, low, high = law.predict(*runs()[:3], runs()[3], **where)
    assert high - low < 1e-6  # runs without luck leave no doubt


def test_losses_of_one_run_are_drawn_together(monkeypatch):
    drawn = []
    monkeypatch.setattr(law, "fit", lambda N, D, L: drawn.append(list(zip(N, D, L, strict=True))))
    sizes, lengths, losses, names = runs(noise=0.01)
    law.bootstrap(sizes, lengths, losses, names, times=5)
    members = {}
    for name, *row in zip(names, sizes, lengths, losses, strict=True):
        members.setdefault(name, []).append(tuple(row))
    for rows in drawn:
        for run in members.values():
            counts = {rows.count(row) for row in run}
            assert len(counts) == 1
    assert len({tuple(sorted(rows)) for rows in drawn}) == 5


def test_a_draw_of_too_few_sizes_is_drawn_anew():
    """Of three runs of three sizes, seven draws of nine lack one; what is left is all three."""
    rows = [(n, d, n) for n in SIZES[:3] for d in LENGTHS]
    sizes, lengths, names = zip(*rows, strict=True)
    losses = [TRUE.loss(n, d) for n, d, _ in rows]
    laws = law.bootstrap(sizes, lengths, losses, names, times=9)
    assert len(laws) == 9
    for one in laws:
        assert (one.alpha, one.beta) == pytest.approx((0.4, 0.55), abs=1e-9)


def test_the_best_size_is_the_best():
    for flops in (1e10, 1e12):
        size = TRUE.best_size(flops)

        def at(n, flops=flops):
            return TRUE.loss(n, flops / (6 * n))

        assert at(size) < min(at(0.99 * size), at(1.01 * size))


def test_attention_is_counted_as_palm_counts_it():
    """Exactly where the MLP's width needs no rounding, elsewhere within 4 %."""
    for width in (16, 32, 48, 64, 96, 128, 256):
        config = scaling.model(width, 0).config
        right = sum(accounting.palm_flops(config, scaling.CONTEXT).values()) / scaling.CONTEXT
        off = abs(scaling.per_character(width) / right - 1)
        assert off < (1e-12 if width in (48, 96) else 0.04)


def test_the_best_size_with_attention_is_the_best():
    """No neighbouring width gives a lower loss for the same FLOPs."""
    for flops in (1e10, 1e12):
        size = scaling.best_size(TRUE, flops)
        width = next(w / 100 for w in range(100, 30_000) if 20 * w**2 / 1e4 + 1.34 * w >= size)

        def at(w, flops=flops):
            return TRUE.loss(20 * w**2 + 134 * w, flops / scaling.per_character(w))

        assert at(width) < min(at(0.98 * width), at(1.02 * width))
        # Narrow models are dearer than 6 N D says, so the budget's best is not the same.
        assert size != pytest.approx(TRUE.best_size(flops), rel=1e-3)


def test_a_ruler_leads_through_the_means_of_its_sizes():
    known = [(n, 3 - 0.1 * math.log(n) + luck) for n in SIZES for luck in (-0.05, 0.05)]
    bent = [(n, loss + (n == SIZES[3])) for n, loss in known]
    beyond = 3 - 0.1 * math.log(1e6)
    for runs, through in ((known, SIZES), (known, SIZES[3:5]), (bent, (SIZES[4], SIZES[1]))):
        assert scaling.ruler(runs, through)(1e6) == pytest.approx(beyond)
    assert scaling.ruler(bent, (SIZES[3], SIZES[4]))(1e6) < beyond - 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda N, D, L: (N[:2], D[:2], L[:2]), "2 runs of"),
        (lambda N, D, L: ([1e5] * len(L), D, L), "1 sizes"),
        (lambda N, D, L: (N, D, [-1.0, *L[1:]]), "above 0"),
    ],
)
def test_too_little_to_fit_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        law.fit(*change(*runs()[:3]))


# --- the trainings -------------------------------------------------------------------------------

SMALL = (8 * 1024, 16 * 1024)  # 16 and 32 steps


def test_a_branch_is_a_run_of_its_own(monkeypatch):
    """What branches off a longer run ends exactly as a run that was meant to be short."""
    monkeypatch.setattr(scaling, "WARM_UP", 4)
    numbers = races.characters()
    both = list(scaling.train(16, 3, numbers, rate=0.01, budgets=SMALL))
    for budget, result in zip(SMALL, both, strict=True):
        [alone] = scaling.train(16, 3, numbers, rate=0.01, budgets=(budget,))
        assert alone[:4] == result[:4]
    assert both[0].uncooled not in (None, both[0].held_out)
    assert both[1].uncooled is None


def test_the_training_loss_is_the_mean_of_the_last_30_steps(monkeypatch):
    seen, real = [], scaling.loss

    def watched(*given):
        found = real(*given)
        if torch.is_grad_enabled():  # not while an exam is marked
            seen.append(found.item())
        return found

    monkeypatch.setattr(scaling, "loss", watched)
    steps = 128  # of which 32 cool down
    [result] = scaling.train(16, 0, races.characters(), rate=0.01, budgets=(steps * 512,))
    assert len(seen) == steps
    assert result.training == pytest.approx(sum(seen[-30:]) / 30, rel=1e-12)


@pytest.mark.parametrize("width", [16, 32, 128])
def test_the_width_aware_rule_divides_the_logits_by_how_much_wider_it_is(width):
    net = scaling.model(width, 0)
    idx, targets = torch.randint(65, (2, 3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, own = net(idx, targets)
        torch.testing.assert_close(scaling.loss(net, "plain", idx, targets), own)
        chances = (logits * 32 / width).log_softmax(-1).gather(-1, targets[..., None])
        torch.testing.assert_close(scaling.loss(net, "width-aware", idx, targets), -chances.mean())


@pytest.mark.parametrize("width", [16, 32, 128])
def test_the_width_aware_rule_draws_the_embedding_as_at_width_32(width):
    plain, aware = (scaling.model(width, 3, rule).state_dict() for rule in scaling.RULES)
    embedding = "model.embed_tokens.weight"
    for name in plain.keys() - {embedding, "lm_head.weight"}:
        assert torch.equal(plain[name], aware[name]), name
    torch.testing.assert_close(aware[embedding], plain[embedding] * (width / 32) ** 0.5)
    assert plain[embedding].std().item() == pytest.approx(width**-0.5, rel=0.1)
    assert aware[embedding].std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_both_rules_are_one_at_the_base_width_and_differ_beyond():
    numbers = races.characters()
    for width, same in ((32, True), (64, False)):
        ends = {
            rule: next(scaling.train(width, 0, numbers, rate=0.01, rule=rule, budgets=SMALL[:1]))
            for rule in scaling.RULES
        }
        assert (ends["plain"] == ends["width-aware"]) == same


def test_the_width_aware_rule_moves_the_logits_alike_at_every_width():
    """One step at one rate: with the plain rule the wider model's logits move much farther."""
    numbers = races.characters()
    [first, _] = scaling.exams(numbers)
    moves = {rule: [] for rule in scaling.RULES}
    for rule in scaling.RULES:
        for width in (32, 128):
            net = scaling.model(width, 0, rule)
            adam = scaling.optimizer(net, rule, 0.003)
            share = 32 / width if rule == "width-aware" else 1.0
            for group in adam.param_groups:
                group["lr"] = group["peak"]
            before = net(first[:8, :-1])[0].detach() * share
            scaling.loss(net, rule, first[:8, :-1], first[:8, 1:]).backward()
            adam.step()
            after = net(first[:8, :-1])[0].detach() * share
            moves[rule].append((after - before).pow(2).mean().sqrt().item())
    growth = {rule: wide / narrow for rule, (narrow, wide) in moves.items()}
    assert growth["plain"] > 2.5 > 1.5 > growth["width-aware"], growth


def test_exams_are_never_trained_on():
    numbers = races.characters()
    same, new = scaling.exams(numbers)
    assert same.shape == new.shape == (759, 65)
    read = scaling.passages(5, scaling.TRAINED, scaling.TRAINED)
    assert len(set(read.tolist())) == scaling.TRAINED // 64
    assert max(read) + 64 < scaling.NEW_PLAYS
    trained = torch.zeros(len(numbers), dtype=torch.bool)
    trained[read[:, None] + torch.arange(64)] = True  # a passage's 65th is the next one's first
    window = torch.arange(64)
    held = scaling._all_passages()[scaling.TRAINED // 64 :]
    assert not trained[held[:, None] + window].any()
    assert not trained[scaling.NEW_PLAYS :].any()
    letters = sorted(set(races.load_text()))
    text = "".join(letters[i] for i in numbers[scaling.NEW_PLAYS :][:40])
    assert text.startswith("I'll pheeze you")
    # The passages of the new plays: one after another, apart, from their first to near their last.
    room = len(numbers) - 65 - scaling.NEW_PLAYS
    places = [scaling.NEW_PLAYS + i * (room // 759) for i in range(759)]
    assert all(b - a >= 65 for a, b in itertools.pairwise(places))
    assert len(numbers) - places[-1] < 2 * 759
    for i, place in enumerate(places):
        assert torch.equal(new[i], numbers[place : place + 65])


def test_budgets_are_eighths_of_a_pass_in_whole_steps():
    assert scaling.BUDGETS == (114_688, 229_376, 458_752, 917_504)
    for budget in scaling.BUDGETS:
        assert type(budget) is int
        assert budget % (scaling.CONTEXT * scaling.BATCH) == 0


def test_repeated_passages_come_in_another_order():
    twice = scaling.passages(1, 64 * 80, 64 * 200)
    first, second, third = twice[:80], twice[80:160], twice[160:]
    assert len(twice) == 200
    assert set(first.tolist()) == set(second.tolist()) > set(third.tolist())
    assert not torch.equal(first, second)
    # Runs of one seed read the same as long as nothing is repeated.
    assert torch.equal(first, scaling.passages(1, scaling.TRAINED, 64 * 200)[:80])


def test_a_second_call_skips_what_is_there(tmp_path, monkeypatch, capsys):
    task = record_scaling.sized("sizes", 16, 0)._replace(budgets=SMALL)
    monkeypatch.setattr(record_scaling, "TASKS", [task])
    monkeypatch.setattr("sys.argv", ["record_scaling", "--out", str(tmp_path)])
    record_scaling.main()
    written = (tmp_path / "scaling.csv").read_text("utf-8")
    rows = written.splitlines()[2:]
    assert [row.split(",")[6] for row in rows] == ["8192", "16384"]
    assert rows[1].endswith(",")
    assert not rows[0].endswith(",")
    capsys.readouterr()
    record_scaling.main()
    assert (tmp_path / "scaling.csv").read_text("utf-8") == written
    assert "sizes" not in capsys.readouterr().out


@pytest.mark.parametrize("bottom", [0.8, 1.0, 1.3])
def test_the_bottom_of_a_parabola_is_found_between_the_rates(bottom):
    curve = [(rate, 2 + math.log(rate / bottom) ** 2) for rate in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert scaling.bottom(curve) == pytest.approx(bottom)

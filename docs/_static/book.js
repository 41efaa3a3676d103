// Between two pages of file:// no browser lets a script read: results are shown without their context.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// Where there is JavaScript, the picture of an explorable gives way to the page itself, as high as it
// says it is. What the page says and hears, book.py has added to it (EXPLORE_SCRIPT).
document.addEventListener("DOMContentLoaded", () => {
  // The theme names the button "Search" and shows "Search Ctrl+K": who speaks to it says what is shown.
  document.querySelectorAll(".search-button-field").forEach((one) => one.removeAttribute("aria-label"));
  const frames = [...document.querySelectorAll("figure.explore")].map((figure) => {
    const frame = document.createElement("iframe");
    frame.src = figure.dataset.src;
    frame.title = figure.dataset.title;
    frame.loading = "lazy";
    figure.querySelector("picture, img")?.closest("a")?.replaceWith(frame);
    if (!frame.isConnected) figure.prepend(frame);
    return frame;
  });
  const theme = () => document.documentElement.dataset.theme || "light";
  const tell = (frame) => frame.contentWindow?.postMessage({ theme: theme() }, "*");
  window.addEventListener("message", (event) => {
    const frame = frames.find((one) => one.contentWindow === event.source);
    if (!frame || typeof event.data?.exploreHeight !== "number") return;
    frame.style.height = `${Math.ceil(event.data.exploreHeight)}px`;
    if (event.data.hello) tell(frame);
  });
  // A table that scrolls can be reached by keys; of the other things that scroll the theme takes care.
  const reachable = new ResizeObserver((all) => all.forEach(({ target }) => {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }));
  document.querySelectorAll("article table").forEach((one) => reachable.observe(one));
  // Paper is white.
  const html = document.documentElement;
  let dark = false;
  window.addEventListener("beforeprint", () => {
    dark = html.dataset.theme === "dark";
    if (dark) html.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => {
    if (dark) html.dataset.theme = "dark";
  });
  new MutationObserver(() => frames.forEach(tell)).observe(document.documentElement, {
    attributeFilter: ["data-theme"],
  });
});

from itertools import repeat

WRONG = {
    "check_certain": [
        ("The capital of", "Where does a word, once begun, leave no choice?"),
        ("To be, or not to be: that is a", "Where does a word, once begun, leave no choice?"),
        ("Once upon a", "Where does a word, once begun, leave no choice?"),
        ("One, two, three, four, ", "leave out the space at the end"),
        (" ".join(repeat("na", 16)), "16 words; 15 are enough"),
        ("  ", "the answer is a text"),
        (7, "the answer is a text"),
    ],
}

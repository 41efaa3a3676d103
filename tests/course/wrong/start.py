WRONG = {
    "check_certain": [
        ("The capital of France is", "leave no choice"),
        ("Monday, Tuesday, Wednesday, Thursday,", "leave no choice"),
        ("We hold these truths to be self- ", "space at the end"),
        ("cat dog " * 20 + "cat", "41 words"),
        ("", "in quotation marks"),
        (0.95, "in quotation marks"),
    ],
}

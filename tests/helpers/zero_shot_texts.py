"""Texts, passages and sentence pairs shared by the tests of zero-shot evaluation."""

TEXT = ("The cat sees the dog near a tree. The bird likes a cloud .\n\n"
        "A road leaves the field near the river. The stone takes the light near a house.\n") * 2
PASSAGES = ["The cat sees the dog near a tree", "The bird likes the stone near a cloud",
            "A light finds the road near the", "The river holds the bird near a xylophone",
            "The dog " * 40 + "river"]
PAIRS = [("The cat sees the dog.", "The cat dog the sees."), ("A bird near a tree.", "A a a a a."),
         ("tree tree", "The tree knows the road near a field."), ("The cat.", "The cat.")]

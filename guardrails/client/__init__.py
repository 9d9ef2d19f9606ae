"""The part of a version that clients may have: which rules, in what form, with what proof.

Exists so that what leaves the server is decided in one place, when a version is published. Protects the rule that a
rule enters a bundle only if its author said so and a client can run it to the letter: a pattern rule of class INSTANT
or FAST whose every check a client knows. What is left out is named in the publication report; the server enforces it
all the same.
"""

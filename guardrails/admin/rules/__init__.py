"""The rule form: a policy's draft edited as fields, examined while it is typed.

Fields come from the kinds' own ``Config`` models (``shapes``), so that a new kind has its form by being there. Protects
two rules: what is loaded and saved unchanged is the same document, and nothing that cannot be bounded is saved.
"""

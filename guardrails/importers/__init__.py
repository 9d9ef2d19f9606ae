"""Reading rules that were written elsewhere: policy files and other projects' rule packs."""

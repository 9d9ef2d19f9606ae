"""The admin's front page: what became of many sessions, in figures and drawings."""

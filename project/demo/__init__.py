"""Everything that ``manage.py demo`` needs to run the whole system on one machine, in one process group's care."""

"""The pages under ``/audit/``: what happened, who judged it, and whether the record is as it was written."""

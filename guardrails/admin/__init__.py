"""The admin's pages for policies, versions, activations, API keys and users.

Views ask for permission and show; what changes goes through ``services``.
"""

from guardrails.admin import keys, policies, rollouts, users

__all__ = ["keys", "policies", "rollouts", "users"]

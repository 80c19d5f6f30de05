"""The soak: many processes on every store while servers and workers die, and a model that checks every answer.

``python -m soak --minutes 30`` runs it; docs/soak.md tells what it checks.
"""

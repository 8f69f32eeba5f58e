"""NeMo models: the policy that trains and the frozen models that judge."""

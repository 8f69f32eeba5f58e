"""From a configuration to what a job needs, without NeMo."""

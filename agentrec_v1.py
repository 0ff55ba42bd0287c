"""The name under which verifiers finds the taskset: `vf-eval agentrec-v1`. It takes no dotted names."""

from agentrec_env.adapters.verifiers import RecTaskset

__all__ = ["RecTaskset"]

"""A stand-in for cuda-bindings on machines without a GPU; see runtime.py."""

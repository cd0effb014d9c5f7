"""The chart on a real Kubernetes, as a package of one program."""

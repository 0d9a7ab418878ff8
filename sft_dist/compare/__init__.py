"""Many runs: which is better, and is it noise."""

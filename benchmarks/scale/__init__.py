"""Large datasets: seconds and memory of every step, and counted operations of the passes."""

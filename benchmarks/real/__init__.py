"""What personalisation is worth on real people's choices: `python -m benchmarks.real_data`."""

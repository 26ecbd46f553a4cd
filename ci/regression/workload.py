"""What a throughput run asks where nothing else is named; --help says it without a package."""

# As in the pull requests.
LENGTHS = ((1024, 1024), (8192, 1024))  # tokens in and out
CONCURRENCIES = (4, 8, 16, 32, 64)
PROMPTS_PER_CLIENT = 10
FEWEST_REPEATS = 3

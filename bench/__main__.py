"""`python -m bench`: the benchmark commands without the rest of the command line."""

from bench.cli import app

if __name__ == "__main__":
    app()

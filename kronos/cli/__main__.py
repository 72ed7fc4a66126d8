"""`python -m kronos.cli`: the command where no script is installed."""

from kronos.cli import main

if __name__ == "__main__":
    main()

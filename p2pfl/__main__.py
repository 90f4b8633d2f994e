"""`python -m p2pfl` is `p2pfl`."""

from p2pfl.cli.main import main

if __name__ == "__main__":
    main()

"""``python -m aos`` is the command ``aos``."""

from aos.cli import main

if __name__ == "__main__":
    main()

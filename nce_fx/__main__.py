"""`python -m nce_fx` is `nce-fx`."""

from nce_fx.cli import main

if __name__ == "__main__":
    main()

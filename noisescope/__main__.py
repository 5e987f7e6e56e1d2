"""`python -m noisescope ...`: the command line, for launchers such as `accelerate launch -m`."""

from noisescope.cli import main

if __name__ == "__main__":
    main()

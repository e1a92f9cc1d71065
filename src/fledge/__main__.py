"""`python -m fledge`, which is also what `accelerate launch -m fledge` runs."""

from fledge.cli import main


raise SystemExit(main())

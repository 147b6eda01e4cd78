"""`python -m hivellm_ort` is `hivellm-ort`."""

from hivellm_ort.cli.main import main

main(prog_name="hivellm-ort")

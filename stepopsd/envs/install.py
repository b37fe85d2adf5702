"""How to get the ALFWorld text engine, for every error that has to say so."""

INSTALL_HINT = (
    "pip install 'stepopsd[alfworld]' (brings alfworld's vision dependencies too), or only what the text engine needs: "
    "pip install --no-deps -r constraints-alfworld.txt from the source tree"
)

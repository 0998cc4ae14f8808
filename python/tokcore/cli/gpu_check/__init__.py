"""Everything that a GPU has to show, in one run: ``python -m tokcore.cli.gpu_check --out FOLDER``.

Needs torch and this package alone; matplotlib and rich draw the plots where they are installed. Each stage works in
processes of its own, so that one which crashes or hangs costs its own results only, and the stages share out the time.
"""

"""Whether a LoRA is good: figures over pictures that were drawn without it and with it, and their report.

    shots.py       what is drawn: prompts of three kinds, seeds, candidates
    kept.py        the pictures on disk, each under all that decides it
    figures.py     a row a figure, and its bootstrap interval
    sight.py       what a judge says of pictures, and what pixels say without one
    measure.py     from what is seen to figures
    spread.py      KID and FID by torchmetrics
    choice.py      which step and which strength
    report.py page.py    in Markdown, JSON, HTML
    regression.py  two reports against each other

A judge is anything with `sight.Judge`'s methods; ComfyUI's are in `trainer.host.judges`.
"""

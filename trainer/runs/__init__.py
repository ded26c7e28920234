"""What runs leave on disk: written whole, found again, checked before it is trusted.

    <runs>/<run>/
        run.json          record       which run this is, and what it gave
        config.json       folder       all settings
        events.jsonl      log          one line a step
        checkpoints/      checkpoints  the LoRA and the state of some steps
        previews/         previews     sample pictures
        training.pid      in_use       the process that trains it now

`steps` owns the names `step_N`. What others put into these folders, and what was damaged, is left out and
named.
"""

"""The pipeline's stages: one thin module each, run by `prlhf <stage>` and ordered by `dvc.yaml`."""

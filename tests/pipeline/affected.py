"""Sets of stages that run again together."""

from omegaconf import OmegaConf

from nvlm.params import composed

# Two of the tasks stand for all: they share a block.
TASKS = ("VQAv2", "MMMU")
BRANCHES = ("34b", "72b")
# Datasets that the tables speak of: those of a person's own are left out.
SETS = {
    "pretrain": ("shape_captions", "digit_text"),
    "sft": ("easy_vqa", "digit_strips", "shape_captions", "multiple_choice"),
    "eval": TASKS,
}


def without_others():
    """Overrides that leave out every other dataset and task of conf/."""
    data = OmegaConf.create(composed([])).data
    return [
        f"~data.{section}.{name}"
        for group, known in SETS.items()
        for section, names in ((group, data[group]), (f"blends.{group}", data.blends.get(group)))
        for name in names or ()
        if name not in known
    ]


def scored(
    *branches,
    models=("sft", "pretrained", "released"),
    tasks=TASKS,
    verbs=("generate", "score"),
):
    """The stages that answer and score; the report is of all scores, and the released model, of the
    72B, answers as the fine-tuned."""
    names = {"sft": "", "pretrained": "pretrained_", "released": "released_"}
    asked = {(branch, model) for branch in branches for model in models}
    asked.discard(("34b", "released"))
    compared = {("72b", "sft"), ("72b", "released")} & asked and "generate" in verbs
    return ({"report"} | ({"verify_released_72b@sft"} if compared else set())) | {
        f"{verb}_{names[model]}{branch}@{task}"
        for verb in verbs
        for branch, model in asked
        for task in tasks
    }


def after_releasing():
    return {"download_released_72b", "import_released_72b"} | scored("72b", models=["released"])


def after_sft(branch):
    own = {"merge_pp_72b"} | after_releasing() if branch == "72b" else set()
    exports = {f"export_megatron_{branch}", f"export_hf_{branch}"}
    return {f"sft_{branch}"} | own | exports | scored(branch, models=["sft"])


def after_pretraining(branch):
    split = {"split_pp_72b"} if branch == "72b" else set()
    own = {f"pretrain_{branch}"} | split | scored(branch, models=["pretrained"])
    return own | after_sft(branch)


def after_combining(branch):
    verified = {"verify_72b"} if branch == "72b" else set()
    looked_at = {f"inspect_pretrain_{branch}", f"inspect_sft_{branch}"}
    return {f"combine_{branch}"} | verified | looked_at | after_pretraining(branch)


def after_converting(half):
    branches = BRANCHES if half == "vision" else [half.removeprefix("lm_")]
    return {f"convert_{half}"}.union(*(after_combining(branch) for branch in branches))


def inspected(phase, *branches):
    return {f"inspect_{phase}_{branch}" for branch in branches}

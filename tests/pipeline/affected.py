"""Sets of stages that run again together."""

# Two of the tasks stand for all: they share a block.
TASKS = ("VQAv2", "MMMU")
BRANCHES = ("34b", "72b")


def scored(*branches, models=("sft", "pretrained"), tasks=TASKS, verbs=("generate", "score")):
    """The stages that answer and score; the report is of all scores."""
    names = {"sft": "", "pretrained": "pretrained_"}
    return {"report"} | {
        f"{verb}_{names[model]}{branch}@{task}"
        for verb in verbs
        for model in models
        for branch in branches
        for task in tasks
    }


def after_sft(branch):
    merge = {"merge_pp_72b"} if branch == "72b" else set()
    exports = {f"export_megatron_{branch}", f"export_hf_{branch}"}
    return {f"sft_{branch}"} | merge | exports | scored(branch, models=["sft"])


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

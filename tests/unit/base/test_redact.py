"""Secrets are replaced in texts and refused in a config."""

import pytest

from ftdist.base.errors import ConfigError, FtdistError
from ftdist.base.redact import redact, redact_arguments, redact_source, secret_variables
from ftdist.config.checks import refuse_secrets
from ftdist.config.schema import RunConfig

CANARY = "c4n4ry-0123456789abcdef"
NAMES = ["WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "X_CREDENTIALS",
         "githubtoken", "DB_PASSPHRASE", "MYSQL_PWD", "DB_PASS", "GITLAB_PAT", "REDIS_AUTH", "SSHPASS"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_value_of_a_secret_variable_is_replaced_everywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, CANARY)
    assert secret_variables()[name] == CANARY
    assert redact(f"401 for https://x/?q={CANARY}&a=1 ({CANARY})") == "401 for https://x/?q=***&a=1 (***)"
    assert CANARY not in str(FtdistError(f"no {CANARY}", CANARY, f"try {CANARY}"))


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, "/nowhere/at/all") for name in ("PWD", "OLDPWD", "PATH", "MANPATH", "XAUTHORITY", "COMPASS", "BYPASS_ALL",
                                              "MY_PATTERN", "AUTHOR", "PASSES", "SSH_AUTH_METHOD")),
     ("SSH_AUTH_SOCK", __file__), ("TOKENIZERS_PARALLELISM", "anything at all"), ("HF_TOKEN", "short"),
     ("HOME", "/nowhere/at/all"), ("AWS_SHARED_CREDENTIALS_FILE", __file__), ("PRIVATE_KEY_BITS", "123456789012")],
)  # fmt: skip
def test_a_harmless_variable_is_not_replaced(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"a {value} b") == f"a {value} b"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://me:pw@host/x", "https://***@host/x"),
        ("ssh://me@host/x", "ssh://me@host/x"),
        ("hf_" + "a" * 34, "***"),
        ("runs/hf_checkpoints", "runs/hf_checkpoints"),
        ("AKIA" + "A1" * 8, "***"),
        ("s3://b/o?X-Amz-Signature=abc&x=1", "s3://b/o?X-Amz-Signature=***&x=1"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb", "a\n***\nb"),
    ],
)
def test_a_secret_is_recognized_by_its_format(text: str, hidden: str) -> None:
    assert redact(text) == hidden


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ('+HF_TOKEN = "abc"', '+HF_TOKEN = "***"'),
        ("+WANDB_API_KEY=abc def", "+WANDB_API_KEY=*** def"),
        ('-  "db_password": "abc",', '-  "db_password": "***",'),
        ("+MYSQL_PWD=abc GITLAB_PAT: abc", "+MYSQL_PWD=*** GITLAB_PAT: ***"),
        ("+PWD=/a COMPAT=b BYPASS=c REPO_PATH=d", "+PWD=/a COMPAT=b BYPASS=c REPO_PATH=d"),
        ("+tokenizer = load(path)", "+tokenizer = load(path)"),
        ("+sample_tokens: int = 3", "+sample_tokens: int = 3"),
        ("+key = 3", "+key = 3"),
    ],
)
def test_values_assigned_to_secret_names_in_a_diff_are_replaced(text: str, hidden: str) -> None:
    assert redact_source(text) == hidden


def test_harmless_arguments_of_a_command_line_are_kept() -> None:
    words = ["ftdist", "train", "optim.lr=1", "+model.config.api_key=a b", "launch.slurm.env.HF_TOKEN=abc", "-m"]
    assert redact_arguments(words) == [*words[:3], "+model.config.api_key=***", "launch.slurm.env.HF_TOKEN=***", "-m"]


def set_env(config: RunConfig, name: str, value: str) -> None:
    config.launch.slurm.env[name] = value


REFUSED = {
    "a variable of the job": lambda c: set_env(c, "HF_TOKEN", CANARY),
    "a variable with any name": lambda c: set_env(c, "GREETING", CANARY),
    "a URL": lambda c: setattr(c.model, "path", f"https://me:{CANARY}@host/m"),
    "a field of the model": lambda c: c.model.config.update(api_key=CANARY),
    "a nested field": lambda c: c.zero.deepspeed.update(comet=[{"api_key": CANARY}]),
    "an option of sbatch": lambda c: c.launch.slurm.options.append(f"--comment={CANARY}"),
    "the ssh command": lambda c: setattr(c.launch.nodes, "ssh", f"sshpass -p {CANARY} ssh"),
    "a key": lambda c: c.model.config.update({CANARY: 1}),
    "the name": lambda c: setattr(c, "name", "hf_" + "a" * 34),
}


@pytest.mark.parametrize("put", REFUSED.values(), ids=REFUSED)
def test_a_secret_in_a_config_is_refused_without_repeating_it(put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    config = RunConfig()
    put(config)
    with pytest.raises(ConfigError, match="export it as an environment variable") as error:
        refuse_secrets(config)
    assert CANARY not in str(error.value) and "hf_a" not in str(error.value)


def test_a_config_without_secrets_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    config = RunConfig(name="kitten")
    config.model.tokenizer, config.model.config = "bytes", {"image_token": "<image>", "num_key_value_heads": 2}
    config.launch.nodes.hosts, config.launch.nodes.ssh = ["me@host"], "ssh -i ~/.ssh/key"
    config.launch.slurm.env = {"TOKENIZERS_PARALLELISM": "false", "NCCL_DEBUG": "INFO", "SSL_KEY": "1"}
    refuse_secrets(config)

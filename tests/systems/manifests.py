"""Checks manifests against the schemas of the systems that take them; run in an environment that
has those. Prints a JSON object {file: what is wrong, empty if nothing is}."""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import kubeflow.training.models as kubeflow_v1
import kubernetes_validate
import yaml
from kubeflow_trainer_api import models as kubeflow_v2

VERSION = "1.33"


def check(path: Path) -> str:
    """Return what is wrong with a file."""
    try:
        for document in yaml.safe_load_all(path.read_text()):
            kind = document.get("kind")
            if "parameters" in document:
                check_sweep(document)
            elif kind is None:
                check_task(path)
            elif kind == "TrainJob":
                check_train_job(document)
            elif kind == "PyTorchJob":
                check_pytorch_job(document)
            else:
                kubernetes_validate.validate(document, VERSION, strict=True)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:500]}"
    return ""


def check_sweep(document: dict) -> None:
    """W&B's package cannot be imported beside a new numpy; its schema can be read."""
    import jsonschema

    schema = metadata.distribution("sweeps").locate_file("sweeps/config/schema.json")
    jsonschema.Draft7Validator(json.loads(Path(str(schema)).read_text())).validate(document)


def check_task(path: Path) -> None:
    import sky

    sky.Task.from_yaml(str(path))


def check_train_job(document: dict) -> None:
    """The models drop what they do not know."""
    read = kubeflow_v2.TrainerV1alpha1TrainJob.from_dict(document).to_dict()
    if read != document:
        raise ValueError(f"unknown keys: {difference(document, read)}")


def check_pytorch_job(document: dict) -> None:
    unknown = list(strangers(document, "KubeflowOrgV1PyTorchJob"))
    if unknown:
        raise ValueError(f"unknown keys: {unknown}")
    for role, replicas in document["spec"]["pytorchReplicaSpecs"].items():
        if role not in ("Master", "Worker"):
            raise ValueError(f"no such role: {role}")
        pod = {"apiVersion": "v1", "kind": "Pod", **replicas["template"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def strangers(value: Any, kind: str, where: str = "") -> Any:
    """Yield the keys that the model of a `kind` does not have, down to the pods' templates."""
    if of := re.fullmatch(r"(?:dict\(str, |list\[)(\w+)[)\]]", kind):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strangers(item, of[1], f"{where}.{name}")
        return
    model = getattr(kubeflow_v1, kind, None)
    if model is None or kind == "V1PodTemplateSpec":
        expected = {"int": int, "str": str, "bool": bool}.get(kind)
        if expected and type(value) is not expected:
            yield f"{where}: {value!r} is no {kind}"
        return
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    for key, item in value.items():
        if key not in names:
            yield f"{where}.{key}"
        else:
            yield from strangers(item, model.openapi_types[names[key]], f"{where}.{key}")


def difference(ours: Any, theirs: Any, where: str = "") -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [key for key in ours if key not in theirs]
        found = [f"{where}.{key}" for key in keys]
        for key in ours.keys() & theirs.keys():
            found += difference(ours[key], theirs[key], f"{where}.{key}")
        return found
    if isinstance(ours, list) and isinstance(theirs, list):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for n, (a, b) in pairs for d in difference(a, b, f"{where}.{n}")]
    return [] if ours == theirs else [f"{where}: {ours!r}"]


if __name__ == "__main__":
    print(json.dumps({name: check(Path(name)) for name in sys.argv[1:]}))

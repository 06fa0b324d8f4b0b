//! What is refused, and in which words.

use super::*;

#[test]
fn texts_that_are_no_job() {
    check("", "1:1: the file is empty | write 'key: value' lines into it");
    check("# only a comment\n", "1:1: the file is empty | write 'key: value' lines into it");
    check("---\n", "1:1: the file is empty | write 'key: value' lines into it");
    check(
        "command: a\n---\ncommand: b\n",
        "2:1: a second YAML document starts here, on line 2 | a file holds one document: remove the '---' or split the file",
    );
    check(
        "- a\n- b\n",
        "1:1: expected a mapping, found a list | write 'key: value' lines, for example 'command: python train.py'",
    );
    check(
        "just text",
        "1:1: expected a mapping, found the text 'just text' | write 'key: value' lines, for example 'command: python train.py'",
    );
}

#[test]
fn fields() {
    check(
        "comand: python train.py\n",
        "1:1: unknown field 'comand' in a command job | did you mean 'command'?",
    );
    check(
        "type: command\ncode: ./src\n",
        "1:1: the job has no 'command' | write what it runs, for example 'command: python train.py'",
    );
}

#[test]
fn syntax() {
    check(
        "command: x\nresources:\n\tcpus: 1\n",
        "3:1: a tab stands in the indentation; YAML allows spaces only | replace the tab by spaces",
    );
    check(
        "command: x\n\ttags: {a: b}\n",
        "2:1: a tab stands in the indentation; YAML allows spaces only | replace the tab by spaces",
    );
    check(
        "command: python a.py: b\n",
        "1:21: a ': ' cannot stand here | quote the text if the ': ' belongs to it, or write it as a block after '>-'; else check the indentation",
    );
    check("command: 'x\n", "1:10: a quote is opened here and never closed | close it");
    check(
        "command: *.py\n",
        "1:10: this alias names no anchor ('*' starts an alias) | quote the text if the '*' belongs to it, or define '&name' before it",
    );
    check("command: @x\n", "1:10: a text cannot start with '@' | quote the text");
    check(
        "command: x\ntags:\n  a: 1\n  b: 2\n  a: 3\n",
        "5:3: the key 'a' is given twice: first on line 3, again on line 5 | keep one of them",
    );
}

#[test]
fn kinds_of_values() {
    check("command: [python, train.py]\n", "1:10: 'command': expected text, found a list");
    check(
        "command: 42\n",
        "1:10: 'command': expected text, found the whole number 42 | quote it if it is meant as text: '42'",
    );
    check(
        "command: yes\n",
        "1:10: 'command': expected text, found the boolean True (from 'yes') | quote it if it is meant as text: 'yes'",
    );
    check(
        "command:\n",
        "1:1: the job has no 'command' | write what it runs, for example 'command: python train.py'",
    );
    check("command: ''\n", "1:10: 'command' is empty | write what the job runs");
    check(
        "command: x\nname: my job\n",
        "2:7: 'my job' is not a valid job name | use letters, digits, '-', '_' and '.', start with a letter or digit, at most 255 characters",
    );
    check(
        "command: x\ntimeout: 5\n",
        "2:1: unknown field 'timeout' in a command job | 'timeout' belongs under 'limits'",
    );
    check(
        "command: x\ninstance_count: 5\n",
        "2:1: unknown field 'instance_count' in a command job | 'instance_count' belongs under 'resources'",
    );
}

#[test]
fn amounts() {
    check(
        "command: x\nresources: {gpu: 1}\n",
        "2:13: unknown field 'gpu' in resources | did you mean 'gpus'?",
    );
    check(
        "command: x\nresources: {gpus: -1}\n",
        "2:19: 'resources.gpus' must be a whole number from 0 to 1024, or a share of one such as 0.5, found -1",
    );
    check(
        "command: x\nresources: {gpus: .nan}\n",
        "2:19: 'resources.gpus' must be a number, found nan",
    );
    check(
        "command: x\nresources: {gpus: 9223372036854775808}\n",
        "2:19: 'resources.gpus' is out of range: expected a whole number from 0 to 1024, or a share of one such as 0.5, found 9223372036854775808",
    );
    check(
        "command: x\nresources: {gpus: 1.5}\n",
        "2:19: 'resources.gpus' cannot be 1.5: a share is of one GPU; write 2 for whole ones, or less than 1",
    );
    check(
        "command: x\nresources: {gpus: 1, gpu_model: '-'}\n",
        "2:33: '-' in 'resources.gpu_model' is not the name of a GPU model | write what its name contains, such as A100 (atelier node show tells the names)",
    );
    check(
        "command: x\nresources: {gpu_memory: 40Gi}\n",
        "2:25: 'resources.gpu_memory' is given, and no GPU is asked for | write how many: 'gpus: 1', or remove 'gpu_memory'",
    );
    check(
        "command: x\nresources: {gpus: 1, gpu_memory: -1Gi}\n",
        "2:34: 'resources.gpu_memory' must be more than 0, found -1Gi",
    );
    check(
        "command: x\nresources: {disk: 100}\n",
        "2:19: 'resources.disk' has no unit: write for example 100GiB, found '100'",
    );
    check(
        "command: x\nresources: {disk: .nan}\n",
        "2:19: 'resources.disk' must be a number, found nan",
    );
    check(
        "command: x\nresources: {disk: 9999999TiB}\n",
        "2:19: 'resources.disk' is out of range: at most 1024 TiB, found 9999999TiB",
    );
    check(
        "command: x\nresources: {node_labels: {a b: c}}\n",
        "2:32: 'a b: c' in 'resources.node_labels' is not a label | a label is a key of letters, digits, -, _, . and / with a value, each of at most 100 bytes",
    );
    check(
        "command: x\nresources: {node_labels: zone}\n",
        "2:26: 'resources.node_labels': expected a mapping, found the text 'zone'",
    );
    check(
        "command: x\nresources: {gpus: two}\n",
        "2:19: 'resources.gpus': expected a whole number from 0 to 1024, or a share of one such as 0.5, found 'two'",
    );
    check(
        "command: x\nresources: {gpus: true}\n",
        "2:19: 'resources.gpus': expected an amount, found the boolean True (from 'true')",
    );
    check(
        "command: x\nresources: {cpus: 0}\n",
        "2:19: 'resources.cpus' must be more than 0, found 0",
    );
    check(
        "command: x\nresources: {cpus: -2}\n",
        "2:19: 'resources.cpus' must be more than 0, found -2",
    );
    check(
        "command: x\nresources: {cpus: .nan}\n",
        "2:19: 'resources.cpus' must be a number, found nan",
    );
    check(
        "command: x\nresources: {cpus: .inf}\n",
        "2:19: 'resources.cpus' must be a number, found inf",
    );
    check(
        "command: x\nresources: {cpus: 1e300}\n",
        "2:19: 'resources.cpus': expected a number of CPUs such as 2, 0.5 or 500m, found '1e300'",
    );
    check(
        "command: x\nresources: {cpus: 9223372036854775808}\n",
        "2:19: 'resources.cpus' is out of range: at most 100000 CPUs, found 9223372036854775808",
    );
    check(
        "command: x\nresources: {cpus: 2 cores}\n",
        "2:19: 'resources.cpus': expected a number of CPUs such as 2, 0.5 or 500m, found '2 cores'",
    );
    check(
        "command: x\nresources: {cpus: [1]}\n",
        "2:19: 'resources.cpus': expected a number of CPUs such as 2, 0.5 or 500m, found a list",
    );
    check(
        "command: x\nresources: {cpus: yes}\n",
        "2:19: 'resources.cpus': expected an amount, found the boolean True (from 'yes')",
    );
    check(
        "command: x\nresources: {memory: 4096}\n",
        "2:21: 'resources.memory' has no unit: write for example 4GiB or 512MiB, found '4096'",
    );
    check(
        "command: x\nresources: {memory: 4 gigs}\n",
        "2:21: 'resources.memory': expected an amount with its unit such as 4GiB or 512MiB, found '4 gigs'",
    );
    check(
        "command: x\nresources: {memory: 0GiB}\n",
        "2:21: 'resources.memory' must be more than 0, found 0GiB",
    );
    check(
        "command: x\nresources: {memory: 9999999TiB}\n",
        "2:21: 'resources.memory' is out of range: at most 1024 TiB, found 9999999TiB",
    );
    check(
        "command: x\nresources: {instance_count: 0}\n",
        "2:29: 'resources.instance_count' is out of range: expected a whole number from 1 to 10000, found 0",
    );
    check(
        "command: x\nresources: [1]\n",
        "2:12: 'resources': expected a mapping (resources), found a list",
    );
    check(
        "command: x\nlimits: {timeout: 0}\n",
        "2:19: 'limits.timeout' is out of range: expected a whole number from 1 to 315360000, found 0",
    );
    check(
        "command: x\nlimits: {timeout: 1h}\n",
        "2:19: 'limits.timeout': expected a whole number from 1 to 315360000, found the text '1h'",
    );
    check(
        "command: x\nretry: {max_attempts: 0}\n",
        "2:23: 'retry.max_attempts' is out of range: expected a whole number from 1 to 1000, found 0",
    );
    check(
        "command: x\nretry: {memory: 2}\n",
        "2:17: 'retry.memory': expected a factor such as 2x or 1.5x, found '2'",
    );
    check(
        "command: x\nretry: {backoff: soon}\n",
        "2:18: 'retry.backoff': expected a time such as 30, 30s, 5m, 1h or 2d, found 'soon'",
    );
    check(
        "command: x\nkeep_failed: 999d\n",
        "2:14: 'keep_failed' is out of range: at most 7d, found 999d",
    );
    check(
        "command: x\non_node_loss: requeu\n",
        "2:15: 'on_node_loss' cannot be 'requeu' | did you mean 'requeue'? (known: requeue, keep)",
    );
}

#[test]
fn expressions() {
    check(
        "command: python ${{inputs.dta}}\ninputs: {data: 1}\n",
        "1:17: in 'command': there is no input 'dta': did you mean 'data'? (known inputs: data)",
    );
    check(
        "command: python ${{inputs.x}}\n",
        "1:17: in 'command': there is no input 'x': declare it under 'inputs'",
    );
    check(
        "command: python ${{inputs.x\n",
        "1:17: in 'command': '${{' is never closed: write '}}' after it",
    );
    check(
        "command: |\n  echo a\n  python --a ${{inputs.a}} --b ${{inputs.b}} --c ${{inputs.b}}\ninputs: {a: 1}\n",
        "3:32: in 'command': there is no input 'b' (known inputs: a)",
    );
    check(
        "command: x ${{inputs.c}}\ninputs: {c: {type: string, optional: true}}\n",
        "1:12: in 'command': input 'c' has no value: give it one, or put what needs it into '$[[ … ]]', which is dropped while the input is unset (known inputs: c)",
    );
    check(
        "command: x ${{search_space.lr}}\n",
        "1:12: in 'command': '${{search_space.lr}}' has a meaning only inside a sweep job",
    );
    check(
        "command: x ${{parent.inputs.lr}}\n",
        "1:12: in 'command': '${{parent.inputs.lr}}' has a meaning only inside a pipeline job",
    );
    check(
        "command: x\nenvironment_variables: {A: '${{outputs.m}}'}\n",
        "2:29: in 'environment_variables.A': there is no output 'm': declare it under 'outputs'",
    );
}

#[test]
fn code_and_inputs() {
    check(
        "command: x\ncode: ./source\n",
        "2:7: 'code': there is no file or folder './source' | looked for /w/proj/source; relative paths start from the YAML file's folder",
    );
    check(
        "command: x\ncode: ~/src\n",
        "2:7: 'code': there is no file or folder '~/src' | '~' is not expanded in YAML: write the whole path",
    );
    check(
        "command: x\ncode: git+https://github.com/a/b\n",
        "2:7: 'code': code from git is not supported yet: 'git+https://github.com/a/b' | clone it, and give the folder",
    );
    check(
        "command: x\ncode: azureml:code:1\n",
        "2:7: 'code': registered code is not supported yet | give the folder with the code",
    );
    check(
        "command: x\ninputs: {d: {path: ./nope.csv, type: uri_file}}\n",
        "2:20: 'inputs.d.path': there is no file or folder './nope.csv' | looked for /w/proj/nope.csv; relative paths start from the YAML file's folder",
    );
    check(
        "command: x\ninputs: {d: {path: ./data, type: uri_file}}\n",
        "2:20: 'inputs.d.path': './data' is a folder, not a file | write 'type: uri_folder', or give a file",
    );
    check(
        "command: x\ninputs: {d: {path: ./data/iris.csv}}\n",
        "2:20: 'inputs.d.path': './data/iris.csv' is a file, not a folder | write 'type: uri_file', or give a folder",
    );
    check(
        "command: x\ninputs: {d: {path: ftp://x/y}}\n",
        "2:20: 'inputs.d.path': 'ftp://' is not a way to name data | known: azureml://, https://, wasbs://, abfss://, adl://, s3://, gs://, runs:/, file:, and local paths",
    );
    check(
        "command: x\ninputs: {d: {path: 'azureml://datastores/blob/x'}}\n",
        "2:20: 'inputs.d.path': 'azureml://datastores/blob/x' has no '/paths/' after the datastore | write azureml://datastores/NAME/paths/PATH",
    );
    check(
        "command: x\ninputs: {d: {path: 'azureml://datastores/blob/paths/../x'}}\n",
        "2:20: 'inputs.d.path': the path '../x' leaves its root by '..' | write the path without '..'",
    );
    check(
        "command: x\ninputs: {d: {path: 'azureml:a b:1'}}\n",
        "2:20: 'inputs.d.path': 'a b' is not an asset's name | names have letters, digits, '-', '_' and '.', at most 255",
    );
    check(
        "command: x\ninputs: {d: {path: 'azureml://jobs/j/out/o'}}\n",
        "2:20: 'inputs.d.path': 'azureml://jobs/j/out/o' names no output of a job | write azureml://jobs/JOB/outputs/OUTPUT/paths/PATH",
    );
    check(
        "command: x\ninputs: {d: {path: '${{parent.inputs.d}}'}}\n",
        "2:20: 'inputs.d.path': an expression cannot stand here | bindings such as ${{parent.inputs.x}} belong to pipeline jobs",
    );
    check(
        "command: x\ninputs: {d: {type: uri_fil, path: ./data}}\n",
        "2:20: 'inputs.d.type' cannot be 'uri_fil' | did you mean 'uri_file'? (known: uri_file, uri_folder, mltable, mlflow_model, custom_model, triton_model, string, integer, number, boolean)",
    );
    check(
        "command: x\ninputs: {d: {type: uri_folder}}\n",
        "2:13: 'inputs.d' has no path | add 'path:' with where the data lies, or 'optional: true'",
    );
    check(
        "command: x\ninputs: {d: {mode: eval_mount, path: ./data}}\n",
        "2:20: input 'd': eval_mount and eval_download are for inputs of type mltable | write 'mode: ro_mount' or 'mode: download'",
    );
    check(
        "command: x\ninputs: {d: {mode: rw_mount, path: ./data}}\n",
        "2:20: 'inputs.d.mode' cannot be 'rw_mount' | did you mean 'ro_mount'? (known: ro_mount, download, direct, eval_mount, eval_download)",
    );
    check(
        "command: x\ninputs: {d: }\n",
        "2:11: 'inputs.d' has no value | give it one; an input that may be without is written as a mapping with its 'type' and 'optional: true'",
    );
    check(
        "command: x\ninputs: {d: [1]}\n",
        "2:13: 'inputs.d': expected text, a number or a boolean, or a mapping (an input), found a list",
    );
    check(
        "command: x\ninputs: {2d: 1}\n",
        "2:10: '2d' is not a valid input or output name | use letters, digits and '_', start with a letter or '_', at most 255 characters",
    );
    check(
        "command: x\ninputs: {on: 1}\n",
        "2:10: the key 'on' is not text in YAML 1.1 | quote it: 'on'",
    );
    check(
        "command: x\ninputs: {n: {type: integer, value: 2.5}}\n",
        "2:36: 'inputs.n': expected a value of type integer, found the number 2.5",
    );
    check(
        "command: x\ninputs: {n: {type: number, value: 25, max: 10}}\n",
        "2:35: 'inputs.n' is out of range: max is 10, found 25",
    );
    check(
        "command: x\ninputs: {n: {type: string, value: c, enum: [a, b]}}\n",
        "2:35: 'inputs.n' cannot be 'c' | known: a, b",
    );
}

#[test]
fn outputs() {
    check(
        "command: x\noutputs: {o: {path: ../x}}\n",
        "2:21: output 'o' cannot go to '../x' | write azureml://datastores/NAME/paths/PATH; it may hold ${{name}}, ${{output_name}} and ${{default_datastore}}",
    );
    check(
        "command: x\noutputs: {o: {path: 'azureml://datastores/blob/paths/a/../../x'}}\n",
        "2:21: output 'o': the path 'a/../../x' leaves its root by '..' | write the path without '..'",
    );
    check(
        "command: x\noutputs: {o: {path: 'azureml://datastores/blob/paths/${{inputs.x}}'}}\n",
        "2:54: output 'o': '${{inputs.x}}' has no meaning in a path | write azureml://datastores/NAME/paths/PATH; it may hold ${{name}}, ${{output_name}} and ${{default_datastore}}",
    );
    check(
        "command: x\noutputs: {o: {mode: ro_mount}}\n",
        "2:21: 'outputs.o.mode' cannot be 'ro_mount' | did you mean 'rw_mount'? (known: rw_mount, upload, direct, mount)",
    );
    check(
        "command: x\noutputs: {o: 5}\n",
        "2:14: 'outputs.o': expected a mapping (an output), found the whole number 5",
    );
}

#[test]
fn environments() {
    check(
        "command: x\nenvironment: sklearn-1.5\n",
        "2:14: 'environment': 'sklearn-1.5' is not a reference to an environment | write azureml:sklearn-1.5@latest, or azureml:sklearn-1.5:VERSION",
    );
    check(
        "command: x\nenvironment: python:3.12\n",
        "2:14: 'environment': 'python:3.12' is not a reference to an environment | for a container image write 'environment: {image: python:3.12}'",
    );
    check(
        "command: x\nenvironment: {}\n",
        "2:14: the environment names no image, conda_file or build | add one of them, or remove 'environment' to use the node's own programs",
    );
    check(
        "command: x\nenvironment: {image: a, build: {path: ./env}}\n",
        "2:32: an environment has an image or a build, not both | keep one of them",
    );
    check(
        "command: x\nenvironment: {build: {path: ./nope}}\n",
        "2:29: 'environment.build.path': there is no folder './nope' | looked for /w/proj/nope",
    );
    check(
        "command: x\nenvironment: {conda_file: ./nope.yml}\n",
        "2:27: 'environment.conda_file': cannot read './nope.yml': there is no such file | looked for /w/proj/nope.yml; relative paths start from the file that names it",
    );
    check(
        "command: x\nenvironment: {conda_file: ./bad-conda.yml}\n",
        "bad-conda.yml:2:5: 'dependencies': only 'pip:' may hold packages of its own | a version is written as '- name=1.2'",
    );
    check(
        "command: x\nenvironment: {conda_file: ./requirements.yml}\n",
        "requirements.yml:3:7: conda_file: pip: '-r req.txt': another file cannot be read on the node: write its lines into the 'pip:' list",
    );
    check(
        "command: x\nenvironment: {conda_file: {dependencies: [python=3.10, 3.11, pip: [numpy, 1.0]]}}\n",
        "2:56: 'environment.conda_file.dependencies': expected a package or 'pip:', found the number 3.11 | quote it if it is meant as text: '3.11'\n2:75: 'environment.conda_file.dependencies': expected a package, found the number 1.0 | quote it if it is meant as text: '1.0'",
    );
    check(
        "command: x\nenvironment: {image: x, channels: [a]}\n",
        "2:25: 'channels' cannot be used here | it belongs into a conda file: write 'conda_file: ./conda.yml' or the content under 'conda_file:'",
    );
    check(
        "command: x\nenvironment: file:env/typo.yml\n",
        "env/typo.yml:2:1: unknown field 'imagee' in an environment | did you mean 'image'?",
    );
    check(
        "command: x\nenvironment: ./env/nope.yml\n",
        "2:14: 'environment': cannot read './env/nope.yml': there is no such file | looked for /w/proj/env/nope.yml; relative paths start from the file that names it",
    );
    check(
        "command: x\nenvironment: ./env/list.yml\n",
        "env/list.yml:1:1: expected a mapping, found a list | write 'key: value' lines, for example 'image: python:3.12'",
    );
    check(
        "command: x\nenvironment: ./env/empty.yml\n",
        "env/empty.yml:1:1: the file is empty | write 'key: value' lines into it",
    );
    check(
        "command: x\nenvironment: azureml://registries/azureml/models/x/labels/latest\n",
        "2:14: 'environment': 'azureml://registries/azureml/models/x/labels/latest' does not name one of: environments | write for example azureml://registries/R/environments/NAME/versions/1",
    );
    check(
        "command: x\ncompute: my cluster\n",
        "2:10: 'compute': compute name 'my cluster' is not valid: use letters, digits, '-' and '_', start with a letter, at most 64 characters | write NAME or azureml:NAME",
    );
    check(
        "command: x\nexperiment_name: ''\n",
        "2:18: '' is not a valid experiment name | use 1 to 500 characters without control characters",
    );
}

#[test]
fn other_kinds_of_documents() {
    check(
        "type: sweep\n",
        "1:7: sweep jobs are not supported yet; command jobs are | write a job with 'type: command' and a 'command:'",
    );
    check(
        "type: Pipeline\n",
        "1:7: pipeline jobs are not supported yet; command jobs are | write a job with 'type: command' and a 'command:'",
    );
    check(
        "jobs: {}\n",
        "1:1: pipeline jobs are not supported yet; command jobs are | write a job with 'type: command' and a 'command:'",
    );
    check(
        "type: schedule\n",
        "1:7: schedules are not supported yet; command jobs are | write a job with 'type: command' and a 'command:'",
    );
    check(
        "trigger: {}\ncreate_job: x\n",
        "1:1: schedules are not supported yet; command jobs are | write a job with 'type: command' and a 'command:'",
    );
    check(
        "type: comand\ncommand: x\n",
        "1:7: there is no job type 'comand' | write 'type: command'",
    );
    check(
        "type: trainjob\ncommand: x\n",
        "1:7: there is no job type 'trainjob' | write 'type: command'",
    );
    check(
        "$schema: https://azuremlschemas.azureedge.net/latest/environment.schema.json\nname: x\nimage: y\n",
        "1:10: this is not a command job, but by its schema 'environment' | a job has a 'command:'",
    );
}

#[test]
fn each_member_of_a_tensorflow_job_is_a_worker_or_a_parameter_server() {
    let with = |members: u32, more: &str| {
        format!(
            "command: x\nresources: {{instance_count: {members}}}\ndistribution:\n  type: tensorflow\n{more}"
        )
    };
    check(
        &with(3, "  worker_count: 2\n"),
        "5:17: 'distribution.worker_count' is 2, and 'resources.instance_count' 3: each member is one of them | write 3, or leave it out; or set 'resources.instance_count' to 2",
    );
    check(
        &with(3, "  worker_count: 3\n  parameter_server_count: 1\n"),
        "5:17: 'distribution.worker_count' is 3 with 'distribution.parameter_server_count' 1, and 'resources.instance_count' 3: each member is one of them | write 2, or leave it out; or set 'resources.instance_count' to 4",
    );
    check(
        &with(3, "  parameter_server_count: 3\n"),
        "5:27: 'distribution.parameter_server_count' is 3, and 'resources.instance_count' 3: at least one member has to be a worker | set it lower, or 'resources.instance_count' higher",
    );
    for (members, more, counts) in [
        (3, "", (3, 0)),
        (3, "  worker_count: 3\n", (3, 0)),
        (3, "  parameter_server_count: 1\n", (2, 1)),
        (3, "  worker_count: 2\n  parameter_server_count: 1\n", (2, 1)),
    ] {
        let job = super::job(&with(members, more));
        let Some(Distribution::TensorFlow { worker_count, parameter_server_count }) =
            job.distribution
        else {
            panic!("{:?}", job.distribution)
        };
        assert_eq!((worker_count, parameter_server_count), counts, "{more}");
    }
}

#[test]
fn the_rest() {
    check(
        "command: x\ndistribution: {process_count_per_instance: 2}\n",
        "2:15: 'distribution' has no 'type' | add 'type:' with one of pytorch, tensorflow, mpi, ray",
    );
    check(
        "command: x\ndistribution: {type: pytorhc}\n",
        "2:22: 'distribution.type' cannot be 'pytorhc' | did you mean 'pytorch'? (known: pytorch, tensorflow, mpi, ray)",
    );
    check(
        "command: x\ndistribution: {type: pytorch, worker_count: 2}\n",
        "2:31: unknown field 'worker_count' in a pytorch distribution | known fields: type, process_count_per_instance",
    );
    check(
        "command: x\ndistribution: {type: ray, head_node_additional_args: \"--labels 'a\"}\n",
        "2:54: 'distribution.head_node_additional_args': a quote is not closed | close it",
    );
    check(
        "command: x\ndistribution: {type: ray, address: a b}\n",
        "2:36: 'distribution.address' is not an address | write HOST or HOST:PORT, or leave it out: the head's node is known",
    );
    check(
        "command: x\nservices: {s: {port: 1}}\n",
        "2:12: 'services.s' has no 'type' | add 'type:' with one of ssh, jupyter_lab, tensor_board, vs_code",
    );
    check(
        "command: x\nidentity: {type: service_principal}\n",
        "2:18: 'identity.type' cannot be 'service_principal' | known: managed, managed_identity, user_identity, aml_token",
    );
    check(
        "command: x\nqueue_settings: {priority: urgent}\n",
        "2:28: 'queue_settings.priority' cannot be 'urgent' | known: low, medium, high",
    );
    check(
        "command: x\nis_deterministic: true\n",
        "2:1: 'is_deterministic' cannot be used here | it belongs to components; remove it",
    );
    check(
        "command: x\ntags: {[a]: b}\n",
        "2:8: a list cannot be a key | quote it if it is meant as text (an expression such as ${{inputs.x}} inside [ ] or { } needs quotes)",
    );
    check(
        "command: x\ntags: {a: [b]}\n",
        "2:11: 'tags.a': expected text, a number or a boolean, found a list",
    );
    check(
        "command: x\ntags: !mine {a: b}\n",
        "2:13: the tag '!mine' means nothing here | remove it; quote the text if the '!' belongs to it",
    );
    check(
        "command: x\ntags: &a {b: *a}\n",
        "2:14: this alias stands inside what it names, so it would never end | write the value out",
    );
    check(
        "command: {{inputs.x}}\n",
        "1:11: a mapping cannot be a key | quote it if it is meant as text (an expression such as ${{inputs.x}} inside [ ] or { } needs quotes)",
    );
    check(
        "command: x\ntags: {d: 2024-02-30}\n",
        "2:11: '2024-02-30' is a date that does not exist | quote it if it is meant as text",
    );
    check(
        "a: 1\nb: 2\ncommand: 3\nresources: {instance_count: -1, cpu: 1}\n",
        "1:1: unknown field 'a' in a command job | known fields: $schema, type, name, display_name, description, experiment_name, tags, properties, command, code, environment, compute, inputs, outputs, environment_variables, resources, distribution, limits, queue_settings, services, identity, retry, on_node_loss, idle_gpu, keep_failed, parent_job_name\n2:1: unknown field 'b' in a command job | known fields: $schema, type, name, display_name, description, experiment_name, tags, properties, command, code, environment, compute, inputs, outputs, environment_variables, resources, distribution, limits, queue_settings, services, identity, retry, on_node_loss, idle_gpu, keep_failed, parent_job_name\n3:10: 'command': expected text, found the whole number 3 | quote it if it is meant as text: '3'\n4:29: 'resources.instance_count' is out of range: expected a whole number from 1 to 10000, found -1\n4:33: unknown field 'cpu' in resources | did you mean 'cpus'?",
    );
}

#[test]
fn what_a_node_could_not_build_is_refused_in_its_words() {
    let conda = |rest: &str, dependency: &str| {
        format!(
            "command: x\nenvironment:\n{rest}  conda_file:\n    dependencies:\n    - python\n    \
             - {dependency}\n"
        )
    };
    for (dependency, expected) in [
        (
            "pip: numpy",
            "6:12: 'environment.conda_file.dependencies.pip': expected a list of packages, found \
             the text 'numpy'",
        ),
        (
            "numpy>=1.2|1.3",
            "6:7: conda_file: dependency 'numpy>=1.2|1.3': alternatives and patterns cannot be \
             given to pip: write one range, for example '>=1.2,<1.4'",
        ),
        (
            "cudf",
            "6:7: the conda packages cannot all come from the Python Package Index, which \
             environments are built from: 'cudf': RAPIDS wheels lie on NVIDIA's own index: put \
             '--extra-index-url' with that index and the '-cu12' package into the 'pip:' list",
        ),
        (
            "pip: [six, -e ./mine]",
            "6:18: conda_file: pip: '-e ./mine': an editable local package does not exist on the \
             node: put it into the code folder and install it in the command",
        ),
    ] {
        check(&conda("", dependency), expected);
    }
    job(&conda("", "pip: ['-e git+https://example.com/x.git#egg=x']"));
    // An image brings its own conda.
    job(&conda("  image: a\n", "cudf"));
    check(
        &conda("  image: a\n", "pip: [-r requirements.txt]"),
        "7:13: 'environment.conda_file.dependencies': pip: '-r requirements.txt': another file \
         cannot be read on the node: write its lines into the 'pip:' list",
    );

    let mut job = job(&conda("", "numpy"));
    let mut submitted = |dependency: serde_json::Value, image: Option<&str>| {
        job.environment = Environment::Inline(InlineEnvironment {
            conda: Some(serde_json::json!({ "dependencies": [dependency] })),
            image: image.map(str::to_owned),
            ..InlineEnvironment::default()
        });
        validate_submitted(&job).map_or_else(|errors| errors.to_string(), |()| String::new())
    };
    assert_eq!(
        submitted(serde_json::json!({"pip": "numpy"}), None),
        "environment.conda_file: conda_file: 'pip:' must hold a list of packages"
    );
    assert!(submitted("cudf".into(), None).contains("RAPIDS"));
    assert_eq!(submitted("cudf".into(), Some("a")), "");
    let many: Vec<String> = (0..20_000).map(|i| format!("r-{i}")).collect();
    let mut long = job.clone();
    long.environment = Environment::Inline(InlineEnvironment {
        conda: Some(serde_json::json!({ "dependencies": many })),
        ..InlineEnvironment::default()
    });
    let message = validate_submitted(&long).unwrap_err().to_string();
    assert!(message.len() < 4000 && message.ends_with("and 19990 more"), "{message}");
}

#[test]
fn names_of_environment_variables() {
    for good in ["A", "_a1", "PYTHONPATH", &"A".repeat(250)] {
        assert!(is_variable_name(good), "{good}");
    }
    for bad in ["", "1A", "A-B", "a.b", "A B", "A=B", "A\0", "É", &"A".repeat(251)] {
        assert!(!is_variable_name(bad), "{bad:?}");
    }
    check(
        "command: x\nenvironment_variables:\n  A: a\n  MY-VAR: b\n  1B: c\n",
        "4:11: 'MY-VAR' is not an environment variable's name | use letters, digits and '_', not \
         starting with a digit, at most 250\n5:7: '1B' is not an environment variable's name | \
         use letters, digits and '_', not starting with a digit, at most 250",
    );
}

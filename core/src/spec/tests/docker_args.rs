//! What a job may ask of its container.

use super::super::docker_args::docker_args;

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn harmless_options_are_taken_however_they_are_written() {
    let options = docker_args(&words(
        "-e A=b=c --env B= --env=C=d --ulimit memlock=-1 --ulimit=stack=67108864 -l a=b \
         --tmpfs /scratch:size=1g --read-only --shm-size 1g -h worker --add-host=db:10.0.0.7",
    ));
    assert_eq!(
        options.unwrap(),
        [
            "--env=A=b=c",
            "--env=B=",
            "--env=C=d",
            "--ulimit=memlock=-1",
            "--ulimit=stack=67108864",
            "--label=a=b",
            "--tmpfs=/scratch:size=1g",
            "--read-only",
            "--shm-size=1g",
            "--hostname=worker",
            "--add-host=db:10.0.0.7",
        ]
    );
    assert_eq!(docker_args(&[]).unwrap(), Vec::<String>::new());
}

#[test]
fn what_opens_a_container_is_refused_with_what_to_do() {
    let told = |line: &str| {
        let refused = docker_args(&words(line)).unwrap_err();
        format!("{refused} | {}", refused.help)
    };
    let all = "remove it; these may be given: --add-host, --env, --hostname, --label, --read-only, \
               --shm-size, --tmpfs, --ulimit";
    for option in [
        "--privileged",
        "--privileged=true",
        "--cap-add=SYS_ADMIN",
        "--cap-add SYS_ADMIN",
        "--security-opt=seccomp=unconfined",
        "--cgroup-parent=/",
        "--cgroupns=host",
        "--pid=host",
        "--userns=host",
        "--uts=host",
        "--user=0",
        "-u0",
        "--entrypoint=/bin/true",
        "--group-add=0",
        "--rootfs",
        "--init",
        "--sysctl=a=b",
        "--annotation=a=b",
        "--secret=x",
        "--env-host",
        "image",
        "",
        "--",
        "-",
        "é",
    ] {
        let first = option.split(' ').next().unwrap();
        let expected =
            format!("'{first}' is not an option that a job may give its container | {all}");
        assert_eq!(told(option), expected, "{option}");
    }
    for (option, help) in [
        ("-v", "name the data under 'inputs'"),
        ("-v/:/host", "name the data under 'inputs'"),
        ("--volume=/:/host", "name the data under 'inputs'"),
        ("--mount=type=bind,source=/,target=/host", "name the data under 'inputs'"),
        ("--gpus=all", "write 'resources.gpus'"),
        ("--device=/dev/sda", "write 'resources.gpus'"),
        ("-m=1g", "write 'resources.memory'"),
        (
            "--ipc=host",
            "leave it out: shared memory is the container's own, as much as 'resources.shm_size' says",
        ),
        ("--network=none", "leave it out: a container has its node's network"),
        ("--env-file=/etc/passwd", "write 'environment_variables'"),
    ] {
        assert!(told(option).ends_with(&format!(" | {help}")), "{}", told(option));
    }
    for (line, expected) in [
        // The agent's own would be taken.
        ("-e PATH", "'-e' needs a name and a value | write '--env NAME=VALUE'"),
        ("-e", "'-e' has no value | write '--env=VALUE'"),
        ("--hostname=", "'--hostname=' has no value | write '--hostname=VALUE'"),
        ("--read-only=false", "'--read-only=false' takes no value | write '--read-only'"),
        ("-e ATELIER_ATTEMPT_FOLDER=/", "'-e' sets what is the node's to say | use another name"),
        ("-e NVIDIA_VISIBLE_DEVICES=all", "'-e' sets what is the node's to say | use another name"),
        ("--label atelier.agent=x", "'--label' sets what is the node's to say | use another name"),
        // A second option is no value of the first.
        (
            "--read-only --privileged",
            &format!("'--privileged' is not an option that a job may give its container | {all}"),
        ),
    ] {
        assert_eq!(told(line), expected);
    }
}

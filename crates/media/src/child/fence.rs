//! What a child puts between itself and everything that is not its task. Called in the child only, before
//! it starts a thread: some of these bind the calling thread and those it starts later.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::{Access, Limits};

/// What libraries read: plug-ins they load late, names of processors, random numbers. Nothing here is
/// anybody's.
const SYSTEM_READ: [&str; 13] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/sys/devices/system/cpu",
    "/dev/urandom",
    "/dev/random",
];

/// Dies with the parent, even when that is killed.
pub(super) fn die_with(parent: u32) -> io::Result<()> {
    check(control(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong))?;
    // It may have died before that took hold.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::other("the parent is gone"));
    }
    Ok(())
}

/// Leaves it to the parent when to end (service managers signal every process of a service), and makes a
/// write beyond the size limit an error that can be reported.
pub(super) fn ignore_signals() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGXFSZ] {
        // SAFETY: ignoring a signal installs no handler.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Puts up every fence there is. Returns those this machine lacks, each as a phrase.
pub(super) fn put_up(access: &Access, limits: Limits) -> io::Result<Vec<String>> {
    // When memory runs out, the kernel should take this process rather than the parent. Only possible
    // before the process stops being dumpable.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    check(control(libc::PR_SET_NO_NEW_PRIVS, 1))?;
    check(control(libc::PR_SET_DUMPABLE, 0))?;
    limit(libc::RLIMIT_CORE, Some(0))?;
    limit(libc::RLIMIT_DATA, limits.memory_bytes)?;
    limit(libc::RLIMIT_FSIZE, limits.file_bytes)?;
    limit(libc::RLIMIT_NOFILE, limits.open_files)?;
    drop_capabilities()?;

    let mut missing = Vec::new();
    match confine_files(access) {
        Ok(true) => {}
        Ok(false) => missing.push("landlock: this kernel does not have it or does not enable it".into()),
        Err(error) => missing.push(format!("landlock: {error}")),
    }
    if let Err(error) = filter_system_calls() {
        missing.push(format!("seccomp: {error}"));
    }
    Ok(missing)
}

fn control(option: libc::c_int, value: libc::c_ulong) -> libc::c_int {
    // SAFETY: the options used here take a number and touch no memory of ours.
    unsafe { libc::prctl(option, value, 0, 0, 0) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn limit(resource: libc::__rlimit_resource_t, value: Option<u64>) -> io::Result<()> {
    let Some(value) = value else { return Ok(()) };
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `now` is valid for writing during the call.
    check(unsafe { libc::getrlimit(resource, &raw mut now) })?;
    // The parent may itself have been given less; that holds.
    let value = value.min(now.rlim_max);
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `limit` is valid for reading during the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) })
}

/// In a container the program often runs as root. Of root's powers the child keeps those that let it use
/// other users' files, which the parent could too.
fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // From linux/capability.h: version 3 of the call, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let keep: u32 = 1 << 1 | 1 << 2 | 1 << 3;
    let mut sets = [Sets::default(); 2];
    // SAFETY: version 3 reads the header and writes two sets of three words, which `sets` has room for.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    let kept = sets[0].permitted & keep;
    let sets = [Sets { effective: kept, permitted: kept, inheritable: 0 }, Sets::default()];
    // SAFETY: version 3 reads the header and two sets.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Landlock: no file but those of the access and of the system, no TCP, no signals to others. Whether the
/// kernel took part of it at least.
fn confine_files(access: &Access) -> Result<bool, RulesetError> {
    let abi = ABI::V6;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = (AccessFs::from_all(abi) & !AccessFs::Execute)
        & !(AccessFs::MakeChar
            | AccessFs::MakeBlock
            | AccessFs::MakeSock
            | AccessFs::MakeFifo
            | AccessFs::IoctlDev);
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    for path in SYSTEM_READ {
        rules = allow(rules, Path::new(path), read)?;
    }
    rules = allow(rules, Path::new("/dev/null"), read | AccessFs::WriteFile)?;
    // The loader looks in here again when a library loads another.
    for folder in std::env::split_paths(&std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default()) {
        rules = allow(rules, &folder, read)?;
    }
    for path in &access.read {
        rules = allow(rules, path, read)?;
    }
    for path in &access.write {
        rules = allow(rules, path, write)?;
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    // What is not there cannot be allowed, and need not be.
    let Ok(fd) = PathFd::new(path) else { return Ok(rules) };
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(ABI::V6) };
    rules.add_rule(PathBeneath::new(fd, rights))
}

/// Seccomp: no network, no other programs, nothing that only an attacker would call. Everything else is
/// allowed: which calls libraries make changes with their versions.
fn filter_system_calls() -> Result<(), Box<dyn std::error::Error>> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = |rules, error: libc::c_int| -> Result<BpfProgram, seccompiler::BackendError> {
        let error = SeccompAction::Errno(error.cast_unsigned());
        SeccompFilter::new(rules, SeccompAction::Allow, error, arch)?.try_into()
    };
    let denied = refuse(denied_calls()?, libc::EPERM)?;
    // The flags of this newer way to start a thread are out of a filter's sight. "No such call" makes the C
    // library use the older way.
    let unknown = refuse(both_numbers(BTreeMap::from([(libc::SYS_clone3, Vec::new())])), libc::ENOSYS)?;
    seccompiler::apply_filter_all_threads(&unknown)?;
    seccompiler::apply_filter_all_threads(&denied)?;
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn denied_calls() -> Result<Rules, seccompiler::BackendError> {
    let always = [
        // Network.
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_accept,
        libc::SYS_accept4,
        // Other programs, and this one's group, by which it is killed.
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_setpgid,
        libc::SYS_setsid,
        // Other processes.
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_kcmp,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        // The tree of files and what surrounds the process.
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_open_by_handle_at,
        libc::SYS_setns,
        libc::SYS_unshare,
        // Parts of the kernel with a history.
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_userfaultfd,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_personality,
        // The machine.
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_adjtimex,
        libc::SYS_clock_adjtime,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_syslog,
    ];
    let mut rules: Rules = always.into_iter().map(|call| (call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    for call in [libc::SYS_fork, libc::SYS_vfork, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_kexec_file_load]
    {
        rules.insert(call, Vec::new());
    }
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![only_if(0, SeccompCmpOp::MaskedEq(thread), 0)?]);
    // Signals to itself are how a process aborts.
    let own = u64::from(std::process::id());
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        rules.insert(call, vec![only_if(0, SeccompCmpOp::Ne, own)?]);
    }
    Ok(both_numbers(rules))
}

fn only_if(argument: u8, is: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value)?])
}

/// On x86-64 each call has a second number, of the x32 interface.
fn both_numbers(mut rules: Rules) -> Rules {
    if cfg!(target_arch = "x86_64") {
        let twins: Vec<_> = rules.iter().map(|(call, when)| (call | 0x4000_0000, when.clone())).collect();
        rules.extend(twins);
    }
    rules
}

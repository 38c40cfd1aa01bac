# shellcheck shell=bash disable=SC2154,SC2034 # a part of `run`, whose variables it uses
# User-Mode Linux: the kernel is a program, its system calls are the host's. One CPU, starts in a
# second, and the host's files are a filesystem of its own (hostfs).

require() {
    uml=$(command -v linux.uml) || fail "linux.uml is missing: apt-get install user-mode-linux"
    release=$("$uml" --version) || fail "$uml does not run: $release"
    modules=/usr/lib/uml/modules
    [[ -d $modules/$release ]] ||
        fail "$modules/$release is missing: apt-get install --reinstall user-mode-linux"
}

# Becomes the kernel. Its log goes to stdout, what the command prints to the descriptors 3 and 4.
boot() {
    TMPDIR=$job exec "$uml" "mem=$memory" "uml_dir=$job/" umid=uml \
        rootfstype=hostfs rootflags=/ ro "init=\"$here/init\"" "${parameters[@]}" \
        VM_HOST=hostfs VM_STDOUT=/dev/tty1 VM_STDERR=/dev/tty2 \
        con=null con0=null,fd:1 con1=null,fd:3 con2=null,fd:4
}

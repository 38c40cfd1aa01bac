# shellcheck shell=bash disable=SC2154,SC2034 # a part of `run`, whose variables it uses
# An ordinary kernel on an emulated machine with two CPUs, each a thread of QEMU. KVM is not used:
# where it is missing the tests are to run too, and where it is there, no differently.
# A distribution's kernel has the way to the host's files (9p over virtio) in modules, hence an
# initramfs.

require() {
    command -v qemu-system-x86_64 >/dev/null ||
        fail "qemu-system-x86_64 is missing: apt-get install qemu-system-x86"
    busybox=$(command -v busybox) || fail "busybox is missing: apt-get install busybox-static"
    folder=$(cd -- "$1" 2>/dev/null && pwd -P) || fail "-q names no folder; see fetch"
    kernel=("$folder"/boot/vmlinuz-*)
    release=${kernel[0]##*/vmlinuz-} modules=$folder/lib/modules
    [[ -r ${kernel[0]} && -r $modules/$release/modules.dep ]] ||
        fail "$folder does not hold one kernel with its modules; see fetch"
}

# Prints an initramfs of busybox, `initramfs` as its init, and the modules for the host's files.
initramfs() {
    local tree=$job/initramfs line module index=10
    mkdir -p "$tree/bin" "$tree/modules"
    cp "$busybox" "$tree/bin/busybox"
    cp "$here/initramfs" "$tree/init"
    while read -r _ module _; do # insmod PATH OPTION...
        case $module in
            *.xz) xz -dc "$module" ;;
            *) cat "$module" ;;
        esac >"$tree/modules/$((index++)).ko"
    done < <(PATH=$PATH:/usr/sbin:/sbin modprobe -C /dev/null -d "$folder" -S "$release" \
        --show-depends -a virtio_pci 9pnet_virtio 9p | awk '!seen[$2]++')
    (cd "$tree" && find . | busybox cpio -o -H newc)
    rm -r "$tree"
}

# Becomes the kernel. Its log goes to stdout, what the command prints to the descriptors 3 and 4.
boot() {
    local link shares=()
    ln -s / "$job/root"
    initramfs >"$job/initramfs.cpio"
    for link in root modules job $(cd "$job" && ls -d visible.* writable.* 2>/dev/null); do
        shares+=(-virtfs "local,path=$job/$link,mount_tag=$link,security_model=none,multidevs=remap")
        case $link in job | writable.*) ;; *) shares[-1]+=,readonly=on ;; esac
    done
    exec qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
        -machine pc -accel tcg,thread=multi -smp 2 -m "$memory" \
        -kernel "${kernel[0]}" -initrd "$job/initramfs.cpio" "${shares[@]}" \
        -chardev stdio,id=log,signal=off -serial chardev:log \
        -chardev file,id=out,path=/dev/fd/3 -chardev file,id=err,path=/dev/fd/4 \
        -device pci-serial-2x,chardev1=out,chardev2=err \
        -append "console=ttyS0 panic=-1 tsc=reliable clocksource=tsc preempt=full mitigations=off ${parameters[*]} \
            VM_INIT=\"$here/init\" VM_HOST=9p VM_9P=trans=virtio,version=9p2000.L,msize=512000 \
            VM_STDOUT=/dev/ttyS1 VM_STDERR=/dev/ttyS2"
}

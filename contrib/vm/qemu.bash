# shellcheck shell=bash disable=SC2154,SC2034 # a part of `run`, whose variables it uses
# An ordinary kernel on an emulated machine with two CPUs, each a thread of QEMU. KVM is not used:
# the tests are to run where it is missing, and no differently where it is there.
# A distribution's kernel has the way to the host's files (9p over virtio) in modules, hence an
# initramfs.

require() {
    command -v qemu-system-x86_64 >/dev/null ||
        fail "qemu-system-x86_64 is missing: apt-get install qemu-system-x86"
    busybox=$(command -v busybox) || fail "busybox is missing: apt-get install busybox-static"
    folder=$(cd -- "$1" 2>/dev/null && pwd -P) || fail "-q $1 is no folder; fetch prints one"
    images=("$folder"/boot/vmlinuz-*)
    release=${images[0]##*/vmlinuz-} modules=$folder/lib/modules
    [[ -r ${images[0]} && -r $modules/$release/modules.dep ]] ||
        fail "-q $1 holds no kernel with modules and their modules.dep; fetch prints one that does"
}

# Prints an initramfs: busybox, `initramfs` as its init, and the modules for the host's files.
pack() {
    local tree=$job/tree module index=10 # two digits, as the names are what orders them
    mkdir -p "$tree/bin" "$tree/modules"
    cp "$busybox" "$tree/bin/busybox"
    cp "$here/initramfs" "$tree/init"
    while read -r module; do
        case $module in
            *.xz) xz -dc "$module" ;;
            *) cat "$module" ;;
        esac >"$tree/modules/$((index++)).ko"
    done < <(PATH=$PATH:/usr/sbin:/sbin modprobe -C /dev/null -d "$folder" -S "$release" \
        --show-depends -a virtio_pci 9pnet_virtio 9p | awk '/^insmod/ && !seen[$2]++ { print $2 }')
    (cd "$tree" && find . | busybox cpio -o -H newc)
    rm -r "$tree"
}

# Becomes the kernel. Its log goes to stdout, what the command prints to the descriptors 3 and 4.
boot() {
    local link share shares=() options
    ln -s / "$job/root"
    for link in "$job"/{root,modules,job,visible.*,writable.*}; do
        [[ -L $link ]] || continue # a pattern without a match
        share=local,path=$link,mount_tag=${link##*/},security_model=none,multidevs=remap
        case ${link##*/} in
            job | writable.*) shares+=(-virtfs "$share") ;;
            *) shares+=(-virtfs "$share,readonly=on") ;;
        esac
    done
    pack >"$job/initramfs.cpio"
    options=(
        console=ttyS0 panic=-1 preempt=full mitigations=off
        clocksource=tsc tsc=reliable # any other takes QEMU's only lock to be read
        "VM_INIT=\"$here/init\"" VM_STDOUT=/dev/ttyS1 VM_STDERR=/dev/ttyS2
        VM_HOST=9p "VM_9P=trans=virtio,version=9p2000.L,msize=512000"
    )
    exec qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
        -machine pc -accel tcg,thread=multi -smp 2 -m "$memory" "${shares[@]}" \
        -chardev stdio,id=log,signal=off -serial chardev:log \
        -chardev file,id=out,path=/dev/fd/3 -chardev file,id=err,path=/dev/fd/4 \
        -device pci-serial-2x,chardev1=out,chardev2=err \
        -kernel "${images[0]}" -initrd "$job/initramfs.cpio" \
        -append "${options[*]} ${parameters[*]}"
}

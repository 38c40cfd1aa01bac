# Completions of dmfilemapd, which knows them best.
source <(/usr/sbin/dmfilemapd completions bash)

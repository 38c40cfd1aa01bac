# Completions of dmfilemapd, which knows them best.
/usr/sbin/dmfilemapd completions fish | source

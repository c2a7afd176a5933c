package recipe

import "banger/internal/fetch"

// suite is Debian 12. Its kernel is of the 6.1 series.
const suite = "bookworm"

// Images are the images that banger can build.
func Images() []Recipe {
	return []Recipe{{
		Name:        DefaultImage,
		Description: "Debian 12 with systemd, sshd, Docker, git, a C toolchain, Python and mise",
		Suite:       suite,
		Packages: []string{
			"systemd", "systemd-sysv", "dbus", "openssh-server", "docker.io", "git", "jq", "curl", "ca-certificates",
			"build-essential", "python3", "sudo", "less", "vim-tiny", "iproute2", "ripgrep", "tmux",
			// What the ones above only recommend, and miss when it is not there.
			"libpam-systemd",  // sessions and cgroups of logins
			"iptables",        // Docker's networks
			"kmod",            // modules from the modules disk
			"procps",          // ps, and sysctl settings at boot
			"openssh-client",  // git over ssh
			"xz-utils",        // tar of .xz, and what mise unpacks
			"netbase",         // names of services and protocols
			"bash-completion", // Tab
			"file",
		},
		Files:     imageFiles(),
		Downloads: []Download{{Item: mise(), Path: "usr/local/bin/mise", Mode: 0o755}},
		Room:      2 << 30,
	}}
}

// Kernels are the kernels that banger can build.
func Kernels() []Recipe {
	return []Recipe{{
		Name:        DefaultKernel,
		Description: "Debian 12's kernel for virtual machines, with its modules",
		Kernel:      true,
		Suite:       suite,
		Packages:    []string{"linux-image-cloud-amd64"},
		Room:        1 << 30,
	}}
}

// mise is the version that was tried in the image. The release page and the
// npm package are said to carry the same file; the sum decides.
func mise() fetch.Item {
	const version = "2026.9.15"
	return fetch.Item{
		Name:   "mise " + version,
		SHA256: "09ea631d6f3e7031d63606a0892dc4c796f9fb57f493bc45937f9f7113c88216",
		Size:   150_884_912,
		Sources: []fetch.Source{
			{URL: "https://github.com/jdx/mise/releases/download/v" + version + "/mise-v" + version + "-linux-x64"},
			{NPM: "@jdxcode/mise-linux-x64@" + version, Member: "package/bin/mise"},
		},
	}
}

// imageFiles are the settings that make a Debian a guest of ours. What only
// the boot decides (masks, identity, keys) is not here: the agent writes it to
// /run and to the VM's own disk.
func imageFiles() []File {
	text := func(path, body string) File { return File{Path: path, Mode: 0o644, Body: body} }
	return []File{
		// Exactly what the README says; sshd takes the first value it meets, and
		// Debian's sshd_config includes this directory before its own settings.
		text("etc/ssh/sshd_config.d/99-banger.conf", "PermitRootLogin prohibit-password\nPubkeyAuthentication yes\nPasswordAuthentication no\n"+
			"KbdInteractiveAuthentication no\nAuthorizedKeysFile /root/.ssh/authorized_keys\n"),
		{Path: "etc/systemd/system/default.target", Link: "/lib/systemd/system/multi-user.target"},
		// Empty: systemd makes an id for this boot unless the agent gives one.
		{Path: "etc/machine-id", Mode: 0o444},
		// mmdebstrap copies these two from the host.
		text("etc/hostname", "banger\n"),
		text("etc/resolv.conf", ""),
		text("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
		text("etc/default/locale", "LANG=C.UTF-8\n"),
		// Not "mise activate", which starts mise at each prompt: that takes a
		// third of a second where the processor is emulated.
		text("etc/profile.d/mise.sh", "# Tools that mise installs are found through its shims.\n"+
			"case \":$PATH:\" in\n*:\"$HOME/.local/share/mise/shims\":*) ;;\n*) export PATH=\"$HOME/.local/share/mise/shims:$PATH\" ;;\nesac\n"),
		text("root/.bashrc", bashrc),
		text("root/.hushlogin", ""),
	}
}

const bashrc = `# ~/.bashrc: for interactive bash.
case $- in *i*) ;; *) return ;; esac
HISTCONTROL=ignoreboth HISTSIZE=10000 HISTFILESIZE=20000
shopt -s histappend checkwinsize
PS1='\[\e[1;32m\]\u@\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\$ '
alias ls='ls --color=auto' ll='ls -l' la='ls -lA' grep='grep --color=auto'
[ -r /etc/profile.d/mise.sh ] && . /etc/profile.d/mise.sh
[ -r /usr/share/bash-completion/bash_completion ] && . /usr/share/bash-completion/bash_completion
# For the environment of mise.toml too, at the price of a mise at each prompt:
# eval "$(mise activate bash)"
`

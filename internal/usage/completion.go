package usage

import (
	"io"

	"github.com/spf13/cobra"
)

// bashAlone lets cobra's script do without the package bash-completion, whose
// function it calls. Words end at spaces alone, as that function is asked to
// see them too.
const bashAlone = `
if ! declare -F _get_comp_words_by_ref >/dev/null; then
    __banger_init_completion()
    {
        COMPREPLY=()
        local line="${COMP_LINE:0:COMP_POINT}"
        read -ra words <<<"$line"
        [[ $line == *[[:space:]] ]] && words+=("")
        cword=$((${#words[@]} - 1))
        cur="${words[cword]}" prev="${words[cword - 1]}"
    }
fi
`

// bashScript prints the completion script of root for bash.
func bashScript(root *cobra.Command, descriptions bool) error {
	out := root.OutOrStdout()
	if err := root.GenBashCompletionV2(out, descriptions); err != nil {
		return err
	}
	_, err := io.WriteString(out, bashAlone)
	return err
}

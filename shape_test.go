package banger_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The budgets of STYLE.md. A breach needs a line in budgets.txt with a reason.
const (
	maxFuncLines      = 70
	maxFileLines      = 500
	maxPackageLines   = 2500
	maxBigLines       = 3000 // daemon, cli, ext4
	maxMethods        = 5
	maxParams         = 4 // besides ctx
	maxImports        = 9
	maxBigImports     = 18 // daemon, cli
	minCommentPercent = 10 // of the lines that are not blank
)

// testKits are imported by tests alone; what they bring together is no part of
// the architecture.
var testKits = map[string]bool{"internal/lab": true, "internal/vmtest": true, "internal/host/hosttest": true, "internal/vmm/vmmtest": true}

var bigPackages = map[string]bool{"internal/daemon": true, "internal/cli": true, "internal/ext4": true}

// shape is what TestShape looks at, and where it reports.
type shape struct {
	t       *testing.T
	fset    *token.FileSet
	excused map[string]bool // "file:thing" or package, from budgets.txt
	used    map[string]bool
}

func (s *shape) breach(key, format string, args ...any) {
	s.t.Helper()
	if s.excused[key] {
		s.used[key] = true
		return
	}
	s.t.Errorf(key+": "+format, args...)
}

// TestShape holds every package to its budgets, its documentation and the
// rules a parser can check.
func TestShape(t *testing.T) {
	s := &shape{t: t, fset: token.NewFileSet(), excused: readBudgets(t), used: map[string]bool{}}
	for _, p := range goList(t) {
		s.pkg(p)
	}
	for key := range s.excused {
		if !s.used[key] {
			t.Errorf("budgets.txt excuses %q, which keeps its budget: delete the line", key)
		}
	}
}

func (s *shape) pkg(p listed) {
	limit, imports := maxPackageLines, maxImports
	if bigPackages[p.rel] {
		limit = maxBigLines
		if p.rel != "internal/ext4" {
			imports = maxBigImports
		}
	}
	if n := len(p.internal); n > imports && !strings.HasPrefix(p.rel, "cmd/") && !testKits[p.rel] {
		s.breach(p.rel+":imports", "imports %d packages of ours, at most %d", n, imports)
	}
	lines, blank, comments, documented := 0, 0, 0, false
	for _, name := range p.files {
		src, err := os.ReadFile(name)
		if err != nil {
			s.t.Fatal(err)
		}
		f, err := parser.ParseFile(s.fset, name, src, parser.ParseComments)
		if err != nil {
			s.t.Fatal(err)
		}
		n := strings.Count(string(src), "\n")
		if n > maxFileLines {
			s.breach(name, "%d lines, at most %d", n, maxFileLines)
		}
		lines += n
		for line := range strings.Lines(string(src)) {
			if strings.TrimSpace(line) == "" {
				blank++
			}
		}
		for _, g := range f.Comments {
			comments += s.fset.Position(g.End()).Line - s.fset.Position(g.Pos()).Line + 1
		}
		documented = documented || f.Doc != nil
		s.file(name, p.rel, f)
	}
	if lines > limit {
		s.breach(p.rel, "%d lines, at most %d", lines, limit)
	}
	if len(p.files) > 0 && !documented {
		s.t.Errorf("%s: no package comment", p.rel)
	}
	if full := lines - blank; full > 100 && comments*100 < full*minCommentPercent && !testKits[p.rel] {
		s.breach(p.rel+":comments", "%d of %d lines are comments, at least %d %%", comments, full, minCommentPercent)
	}
}

func (s *shape) file(name, rel string, f *ast.File) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			s.function(name, d)
		case *ast.GenDecl:
			s.declaration(name, d)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			s.call(name, rel, call)
		}
		return true
	})
}

func (s *shape) function(name string, d *ast.FuncDecl) {
	at := s.fset.Position(d.Pos())
	n := s.fset.Position(d.End()).Line - at.Line + 1
	if n > maxFuncLines {
		s.breach(name+":"+d.Name.Name, "%d lines, at most %d", n, maxFuncLines)
	}
	if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) {
		s.t.Errorf("%v: %s has no doc comment", at, d.Name.Name)
	}
	if d.Name.Name == "init" && d.Recv == nil {
		s.t.Errorf("%v: no init functions", at)
	}
	params := 0
	for _, p := range d.Type.Params.List {
		if sel, ok := p.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Context" {
			continue
		}
		params += max(1, len(p.Names))
	}
	if params > maxParams {
		s.breach(name+":"+d.Name.Name+":params", "%d parameters besides ctx, at most %d", params, maxParams)
	}
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	t := d.Recv.List[0].Type
	if p, ok := t.(*ast.StarExpr); ok {
		t = p.X
	}
	if i, ok := t.(*ast.IndexExpr); ok {
		t = i.X
	}
	id, ok := t.(*ast.Ident)
	return ok && id.IsExported()
}

func (s *shape) declaration(name string, d *ast.GenDecl) {
	for _, spec := range d.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			if spec.Name.IsExported() && d.Doc == nil && spec.Doc == nil {
				s.t.Errorf("%v: type %s has no doc comment", s.fset.Position(spec.Pos()), spec.Name.Name)
			}
			if i, ok := spec.Type.(*ast.InterfaceType); ok && i.Methods.NumFields() > maxMethods {
				s.breach(name+":"+spec.Name.Name, "%d methods, at most %d", i.Methods.NumFields(), maxMethods)
			}
		case *ast.ValueSpec:
			for _, id := range spec.Names {
				if id.IsExported() && d.Doc == nil && spec.Doc == nil && spec.Comment == nil {
					s.t.Errorf("%v: %s has no doc comment", s.fset.Position(id.Pos()), id.Name)
				}
			}
		}
	}
}

// badStart matches how error messages must not begin: they name the attempt.
var badStart = regexp.MustCompile(`^"(failed|error|unable|could not|couldn't|cannot|can't)\b`)

func (s *shape) call(name, rel string, call *ast.CallExpr) {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	pkg, ok := sel.X.(*ast.Ident)
	if !ok {
		return
	}
	isMain := strings.HasPrefix(rel, "cmd/") || strings.HasPrefix(rel, "internal/cmd/") || rel == "bench"
	at := s.fset.Position(call.Pos())
	switch full := pkg.Name + "." + sel.Sel.Name; full {
	case "time.Sleep":
		s.t.Errorf("%v: no time.Sleep: wait for an event with a deadline", at)
	case "context.Background", "context.TODO":
		if !isMain {
			s.breach(name+":"+full, "%s at line %d: contexts come from main or from the caller", full, at.Line)
		}
	case "os.Exit":
		if !isMain {
			s.breach(name+":"+full, "%s at line %d: only main ends the process", full, at.Line)
		}
	case "exec.Command":
		s.breach(name+":"+full, "%s at line %d: use exec.CommandContext", full, at.Line)
	case "fmt.Print", "fmt.Println", "fmt.Printf":
		if !isMain {
			s.t.Errorf("%v: %s outside a main", at, full)
		}
	case "fmt.Errorf", "errors.New":
		if lit, ok := call.Args[0].(*ast.BasicLit); ok && badStart.MatchString(lit.Value) {
			s.t.Errorf("%v: an error names the attempt, as in \"opening disk: ...\": %s", at, lit.Value)
		}
	}
}

// TestTestsDoNotSleep looks at the test files, which go list leaves out above.
func TestTestsDoNotSleep(t *testing.T) {
	err := filepath.WalkDir(".", func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, "_test.go") || name == "shape_test.go" {
			return err
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(src), "\n") {
			if strings.Contains(line, "time."+"Sleep(") {
				t.Errorf("%s:%d: no time.Sleep: wait for an event with a deadline", name, i+1)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// readBudgets reads budgets.txt: "KEY reason ...". A key is what a breach
// begins with.
func readBudgets(t *testing.T) map[string]bool {
	t.Helper()
	b, err := os.ReadFile("budgets.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, reason, _ := strings.Cut(line, " ")
		if len(strings.TrimSpace(reason)) < 10 {
			t.Errorf("budgets.txt: %s needs a reason", key)
		}
		m[key] = true
	}
	return m
}

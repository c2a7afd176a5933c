# make run and make test are all a newcomer needs: both install what the host
# lacks, build, and go. Logic lives in Go programs below internal/cmd.
BIN      := build/bin
BUILDVCS := $(shell git status >/dev/null 2>&1 || echo -buildvcs=false)
GOBUILD  := CGO_ENABLED=0 tools/gobuild $(BUILDVCS) -trimpath -ldflags '-s -w'
HOSTDEPS := $(GOBUILD) -o build/hostdeps ./internal/cmd/hostdeps && build/hostdeps
TESTTIME ?= 40m

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

run: ## run a VM: make run ARGS="--rm -- uname -a"
	@$(HOSTDEPS) run
	@$(MAKE) -s build
	@if [ -n '$(subst ','\'',$(ARGS))' ] || [ -t 0 -a -t 1 ]; then \
		exec $(BIN)/banger vm run $(ARGS); \
	else exec $(BIN)/banger vm run --rm -- uname -a; fi

build: ## build the binaries into build/bin
	@$(GOBUILD) -o $(BIN)/ ./cmd/...

test: ## run all tests, real VMs included
	@$(HOSTDEPS) test
	@$(MAKE) -s build lint
	go test -count=1 -timeout $(TESTTIME) ./...
	@$(MAKE) -s race lab

race: ## run the concurrent packages under the race detector
	go test -count=1 -race -timeout $(TESTTIME) $$(cat race.txt)

lab: ## run the tests of the lab machine (docs/lab.md): ARGS="-run KVM", ARGS=shell
	@$(HOSTDEPS) test
	@$(GOBUILD) -o build/lab-tool ./internal/cmd/lab
	@build/lab-tool $(ARGS)

lint: ## vet, staticcheck and gofmt
	@test -z "$$(gofmt -l cmd internal bench test *.go | tee /dev/stderr)"
	@go vet ./... && go vet -tags lab ./test/...
	@go tool -modfile=tools/go.mod staticcheck ./... && go tool -modfile=tools/go.mod staticcheck -tags lab ./test/...

bench: build ## print the benchmarks as a table and as JSON
	@$(HOSTDEPS) test
	go run ./bench -banger $(BIN)/banger $(ARGS)

clean: ## remove what make build made
	rm -rf build

.PHONY: help run build test race lab lint bench clean

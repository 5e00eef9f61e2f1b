from benchmarks.peers import build as b
import subprocess
for p in ("pfl",):
    folder=b.ENVIRONMENTS/p
    import shutil,venv
    shutil.rmtree(folder,ignore_errors=True); venv.create(folder,with_pip=True,symlinks=True); b.link_torch(folder)
    pip=[str(b.python(p)),"-m","pip","install","--quiet","--disable-pip-version-check","--constraint",str(b.HERE/f"{p}.txt")]
    r=subprocess.run([*pip,*b.OF_TORCH,*b.PEERS[p]],capture_output=True,text=True); print(p,r.returncode,r.stderr[-1500:])

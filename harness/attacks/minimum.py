"""The nearest adversarial by gradients: the fast minimum-norm attack (Pintor et al. 2021), in four norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from ..attack import Attack, Kind
from ..errors import UserError
from ..threat import Norm, Threat, magnitude, per_sample
from ..victim import Victim, input_gradient
from .apgd_l1 import project_l1_box
from .draws import Draws
from .line import CHUNK, diameter, is_fooled, log_odds, shorten

HEAT=0.1
MODE="noise"
EXCL=None
A=(1.,.01)
BETA=.3


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(Attack):
    name: ClassVar[str] = "fmn"

    steps: int = 100
    restarts: int = 1
    gamma: float = 0.2

    @property
    def kind(self) -> Kind:
        return "minimal"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        if not len(x):
            return x
        draws = Draws(x)
        parts = torch.arange(len(x), device=x.device).split(CHUNK)
        return torch.cat([self._nearest(victim, x[rows], y[rows], threat.norm, draws.of(rows)) for rows in parts])

    def _nearest(self, victim, x, y, norm, draws):
        best, least, self_heat = x.clone(), x.new_full((len(x),), math.inf), []
        cls=[]
        for restart in range(self.restarts):
            stream = draws.fork(restart)
            start = torch.zeros_like(x) if not restart else _start(x, norm, torch.where(least < math.inf, least, diameter(x, norm)), stream)
            found, size, label = self._run(victim, x, y, norm, start, stream, self_heat, cls)
            cls.append(label)
            nearer = size < least
            best, least = torch.where(per_sample(nearer, x), found, best), torch.where(nearer, size, least)
        if norm != "l0":
            best = shorten(victim, x, y, best)
        return best

    def _run(self, victim, x, y, norm, delta, draws, heat, cls):
        best, least = x.clone(), x.new_full((len(x),), math.inf)
        label=y.clone()
        eps = x.new_full((len(x),), math.inf)
        average = torch.zeros_like(x)
        for step in range(self.steps):
            decay = (1 + math.cos(math.pi * step / self.steps)) / 2
            gamma = self.gamma*decay+.001*(1-decay)
            def obj(l):
                own=l.gather(1,y[:,None]).squeeze(1)
                if not heat:
                    heat.append((own-l.scatter(1,y[:,None],-math.inf).amax(1)).clamp_min(1e-12).detach()*HEAT)
                t=heat[0]
                if MODE in("exclude","both"):
                    for c in cls: l=torch.where((c!=y)[:,None]&(torch.arange(l.shape[1])==c[:,None]),-math.inf,l)
                return log_odds(l/t[:,None],y)*t
            value, grad, logits = input_gradient(victim, x + delta, obj)
            hit = is_fooled(logits, y)
            margin=logits.scatter(1,y[:,None],-math.inf).amax(1)-logits.gather(1,y[:,None]).squeeze(1)
            size = magnitude(delta, norm)
            new = hit & (size < least)
            best[new], least[new] = (x + delta)[new], size[new]
            label[new]=logits.argmax(1)[new]
            if step == self.steps - 1:
                break
            now=x+delta
            grad = grad.nan_to_num(0,0,0)
            if norm!="l0": grad.masked_fill_(((now <= 0) & (grad < 0)) | ((now >= 1) & (grad > 0)), 0)
            dead = (~grad.flatten(1).any(1)).nonzero().squeeze(1)
            grad[dead]=draws.fork(step).of(dead).normal(*x.shape[1:])
            if norm=="l0":
                g=grad/per_sample(magnitude(grad,"linf"),grad)
                average = g if step==0 else average+BETA*(g-average)
            q={"l2":2,"linf":1,"l1":math.inf,"l0":math.inf}[norm]
            dual=torch.linalg.vector_norm(grad.flatten(1),ord=q,dim=1)
            found=least<math.inf
            est=torch.maximum(size+margin.abs()/dual.clamp_min(1e-30),size*(1+gamma))
            if norm == "l0":
                grow=torch.maximum(eps*(1+gamma),eps+1); shr=torch.minimum(torch.where(eps<math.inf,torch.minimum(eps*(1-gamma),eps-1),size-1),least-1)
                if step==0: grow=est.clamp(max=x[0].numel()/10)
                grow=torch.where(found,torch.minimum(grow,least-1),grow)
                eps=torch.where(hit,shr,grow).floor().clamp(1,x[0].numel())
                room=torch.where(average>0,1-x,-x)
                gain=(average*room).flatten(1)
                top=gain.argsort(1,descending=True)
                rank=torch.arange(gain.shape[1]).expand_as(top)
                keep=torch.zeros_like(gain,dtype=torch.bool).scatter(1,top,rank<eps[:,None])
                delta=torch.where(keep.view_as(x)&(average!=0),room,0.)
                continue
            grow=torch.where(found,eps*(1+gamma),est)
            shr=torch.minimum(torch.where(eps<math.inf,eps,size)*(1-gamma),least)
            eps=torch.where(hit,shr,grow).clamp(max=diameter(x,norm))
            a=A[0]*decay+A[1]*(1-decay)
            if norm=="linf": moved=delta+a*per_sample(eps,x)*grad.sign()
            else:
                u=grad/per_sample(magnitude(grad,"l2"),grad)
                moved=delta+(a*per_sample(eps,x) if norm=="l2" else a)*u
            delta=_project(x,moved,norm,eps)-x
        return best, least, label


def _project(x,delta,norm,eps):
    if norm=="linf":
        e=per_sample(eps,x); return (x+torch.minimum(torch.maximum(delta,-e),e)).clamp(0,1)
    if norm=="l2":
        return (x+delta*per_sample((eps/magnitude(delta,"l2").clamp_min(1e-30)).clamp(max=1),x)).clamp(0,1)
    return project_l1_box(x,x+delta,eps)

def _start(x,norm,radius,draws):
    if MODE=="exclude": return torch.zeros_like(x)
    noise=draws.normal(*x.shape[1:])
    if norm=="linf": return (x+per_sample(radius,x)*noise.sign()).clamp(0,1)-x
    if norm=="l2": return (x+per_sample(radius/magnitude(noise,"l2"),x)*noise).clamp(0,1)-x
    if norm=="l1": return project_l1_box(x,x+noise,radius)-x
    room=torch.where(noise>0,1-x,-x).flatten(1)
    top=noise.flatten(1).abs().argsort(1,descending=True)
    keep=torch.zeros_like(room,dtype=torch.bool).scatter(1,top,torch.arange(room.shape[1])<radius[:,None])
    return torch.where(keep,room,0.).view_as(x)
